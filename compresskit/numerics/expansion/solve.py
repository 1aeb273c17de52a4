"""Factors whose product is a given kernel, in closed form: where no more than one of them has several taps."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from compresskit.numerics.expansion.composition import Shape


def carrier(shapes: Sequence[Shape]) -> int | None:
    """Number of the factor that is solved for; None where the closed form does not apply.

    It is the one with several taps; of two matrices the larger one, of three the middle one. In front of it and behind
    it is at most one factor, of one tap.
    """
    several = [number for number, shape in enumerate(shapes) if prod(shape[2:-1]) > 1]
    matrices = 1 if len(shapes) == 3 else max(range(len(shapes)), key=lambda number: prod(shapes[number]))
    number = several[0] if several else matrices
    return number if len(several) < 2 and number <= 1 and len(shapes) - number <= 2 else None


def solve_factors(kernel: Tensor, start: Sequence[Tensor]) -> list[Tensor]:
    """Factors near `start` whose product is `kernel` (groups, out, *taps, in).

    With A (mid, in) the factor in front of the carrier B and C (out, mid) the one behind it,

        B = B_start + C^T (kernel - C B_start A) A^T.

    A, if it is as wide as the inputs, has the orthonormal columns that Gram and Schmidt make of its start's; else its
    rows are the first singular vectors of the inputs. C is alike for the outputs. So transposes are pseudo-inverses,
    and the change of B is the smallest one. The product is the kernel where either width is at least the kernel's rank
    on its side; else it is the kernel's truncated higher-order singular value decomposition (De Lathauwer, De Moor and
    Vandewalle 2000). What the product does not see of B_start stays: without it, widths beyond the rank would have no
    gradient, ever. Raises ValueError without a `carrier`. Not in the document, which trains from random.
    """
    number = carrier([tuple(factor.shape) for factor in start])
    if number is None:
        raise ValueError("solve_factors takes at most one factor of several taps, with one before and one behind it")
    found = list(start)
    before = behind = None
    if number > 0:
        before = _basis(start[0].flatten(2).mT, kernel.flatten(1, -2).mT).mT
        found[0] = before.reshape(start[0].shape)
    if number < len(start) - 1:
        behind = _basis(start[-1].flatten(2), kernel.flatten(2))
        found[-1] = behind.reshape(start[-1].shape)
    missing = kernel - _times(behind, start[number], before)
    change = _times(None if behind is None else behind.mT, missing, None if before is None else before.mT)
    found[number] = start[number] + change
    return found


def orthonormal(factor: Tensor) -> Tensor:
    """A factor of one tap with orthonormal columns, or rows if it has fewer, that span what its own do.

    One that is drawn can be nearly singular, or a single number near 0, and its neighbour, which makes up for it, too
    large to learn.
    """
    matrix = factor.flatten(2)
    tall = matrix.shape[-2] >= matrix.shape[-1]
    return (_columns(matrix) if tall else _columns(matrix.mT).mT).reshape(factor.shape)


def _basis(drawn: Tensor, unfolded: Tensor) -> Tensor:
    """(groups, size, mid): orthonormal columns for the first dimension of `unfolded`, or rows where mid is wider."""
    size, width = drawn.shape[-2:]
    if width >= size:
        return orthonormal(drawn)
    left = torch.linalg.svd(unfolded, full_matrices=False)[0]
    return _columns(torch.cat([left, drawn], -1)[..., :width])  # the drawn ones, where it has more than the kernel


def _columns(matrix: Tensor) -> Tensor:
    """By Gram and Schmidt, which leave a number its sign."""
    columns, triangle = torch.linalg.qr(matrix)
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign()
    signed: Tensor = columns * torch.where(signs == 0, 1.0, signs)[..., None, :]
    return signed


def _times(left: Tensor | None, kernel: Tensor, right: Tensor | None) -> Tensor:
    """The kernel, multiplied by matrices of its groups from both sides."""
    if right is not None:
        kernel = (kernel.flatten(1, -2) @ right).view(*kernel.shape[:-1], -1)
    if left is not None:
        kernel = (left @ kernel.flatten(2)).view(len(kernel), -1, *kernel.shape[2:])
    return kernel
