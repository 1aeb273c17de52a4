"""Convolutions by their transforms: kernels made orthogonal there (ECO), and the singular values of any kernel.

A convolution with cyclic padding on a map of n positions a side applies, to each frequency (p, q) of the map, one
matrix of outputs x inputs: sum over taps (a, b) of W[:, :, a, b] exp(2 pi i (a p + b q) / n). So the singular values of
the whole operator are those of these matrices (Sedghi, Gupta and Long 2019; SAO, equation (6)).
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def explicit_kernel(taps: tuple[int, ...], draw: Callable[[bool], Tensor]) -> Tensor:
    """(outputs, inputs, *taps) real kernel, float64, whose transform of length `taps` consists of drawn matrices.

    draw: a matrix (outputs, inputs), complex if asked for by True, real for the frequencies that are their own mirror
    image. The other frequencies come in pairs p, -p, of which the second gets the conjugate of the first: that keeps
    the kernel real. (k^2 + 1) / 2 matrices are drawn for k x k taps if k is odd, (k^2 + 4) / 2 if it is even.

    Dilated by n / k, the kernel has on a cyclic map of n positions a side the matrix of frequency p mod k at each
    frequency p. So if the matrices are unitary, the operator is orthogonal; unequal widths take the first columns or
    rows of a square one, which is what padding the channels with zeros comes to.
    Source: SAO, section III-D 4, after Yu et al. 2022, who take real matrices for all frequencies.
    """
    if not taps:
        return draw(False)  # of a linear layer, whose one frequency is 0
    found: dict[tuple[int, ...], Tensor] = {}
    for place in itertools.product(*map(range, taps)):
        mirror = tuple(-p % k for p, k in zip(place, taps, strict=True))
        found[place] = found[mirror].conj() if mirror in found else draw(mirror != place).to(torch.complex128)
    transform = torch.stack(list(found.values()), -1).unflatten(-1, taps)
    kernel: Tensor = torch.fft.ifftn(transform, dim=tuple(range(2, transform.ndim)))
    return kernel.real.contiguous()


def singular_values(weight: Tensor, size: tuple[int, ...], dilation: tuple[int, ...] | None = None) -> Tensor:
    """(positions, min(outputs, inputs)) singular values of a convolution of stride 1 on a cyclic map, descending.

    weight: (outputs, inputs, *taps). size: of the map. dilation: of the kernel, 1 by default; taps that reach further
    than the map go round it. Frequencies are in the order of torch.fft.
    """
    spread = dilation or (1,) * len(size)
    wrapped = weight.new_zeros(*weight.shape[:2], *size, dtype=torch.float64)
    for place in itertools.product(*map(range, weight.shape[2:])):
        tap: tuple[Any, ...] = (..., *place)
        position: tuple[Any, ...] = (..., *(p * d % n for p, d, n in zip(place, spread, size, strict=True)))
        wrapped[position] += weight[tap].double()
    transform = torch.fft.fftn(wrapped, dim=tuple(range(2, wrapped.ndim)))
    found: Tensor = torch.linalg.svdvals(transform.flatten(2).movedim(-1, 0))
    return found
