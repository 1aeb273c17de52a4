"""Skew-orthogonal convolutions (SOC): the exponential of a convolution whose operator is skew-symmetric."""

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Tensor


def skew(kernel: Tensor) -> Tensor:
    """V[i, j, a] - V[j, i, -a] of a kernel (c, c, *odd taps): the operator of a convolution with it is skew-symmetric,
    be its map padded with zeros or cyclically, as long as that keeps its size. Source: Singla and Feizi 2021."""
    return kernel - kernel.transpose(0, 1).flip(tuple(range(2, kernel.ndim)))


def bounded(kernel: Tensor) -> Tensor:
    """The kernel, divided by an upper bound of its operator's spectral norm where that is more than 1.

    The bound is sqrt(taps) times the spectral norm of the kernel as a matrix (c, c taps), of which in turn the
    Schatten 16-norm (sum of sigma^16)^(1/16) is a bound, at most c^(1/16) times too large, made of products alone.
    """
    matrix = kernel.flatten(1)
    scale = matrix.detach().abs().max().clamp(min=torch.finfo(kernel.dtype).tiny)  # powers of 8 overflow otherwise
    gram = (matrix / scale) @ (matrix / scale).T
    squared = gram @ gram
    fourth = squared @ squared
    power = torch.linalg.matrix_norm(fourth).clamp(
        min=1
    )  # as it is unless the kernel is zero, at which roots are steep
    norm: Tensor = scale * power.pow(1 / 8) * sqrt(prod(kernel.shape[2:]))
    found: Tensor = kernel / norm.clamp(min=1)
    return found


def exponential(x: Tensor, apply: Callable[[Tensor], Tensor], terms: int) -> Tensor:
    """sum over i up to `terms` of L^i x / i!, with L as `apply`.

    If L is skew-symmetric and of a spectral norm of 1 at most, it differs from exp(L) x, an orthogonal map, by
    less than 1.1 |x| / (terms + 1)!: 2.8e-8 |x| for 10 terms.
    """
    total, term = x, x
    for number in range(1, terms + 1):
        term = apply(term) / number
        total = total + term
    return total
