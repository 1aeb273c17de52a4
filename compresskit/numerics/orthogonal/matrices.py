"""Random orthogonal matrices, and kernels of convolutions made from them.

A matrix (rows, columns) is orthogonal here if its min(rows, columns) singular values are all 1: its rows are
orthonormal if there are no more of them than columns, else its columns. All in float64, or complex128.
"""

from typing import Any

import torch
from torch import Tensor


def orthogonal(rows: int, columns: int, generator: torch.Generator, *, batch: int | None = None) -> Tensor:
    """(rows, columns) by Haar's measure, or `batch` of them, (batch, rows, columns)."""
    return _orthonormal(rows, columns, generator, batch, torch.float64)


def unitary(rows: int, columns: int, generator: torch.Generator, *, batch: int | None = None) -> Tensor:
    """The complex counterpart of `orthogonal`: complex128, its singular values all 1."""
    return _orthonormal(rows, columns, generator, batch, torch.complex128)


def looks_linear(matrix: Tensor) -> Tensor:
    """[[H, -H], [-H, H]] of H (m, n): (2m, 2n), orthogonal for nets with ReLU.

    Behind a ReLU its outputs are [max(z, 0), max(-z, 0)] with z = H (u - v) for inputs [u, v], so that differences of
    halves go through layers as through orthogonal ones. Its own singular values are 2 (m or n of them) and 0.
    Source: SAO, equation (5), after Burkholz and Dubatovka 2019.
    """
    upper = torch.cat([matrix, -matrix], -1)
    return torch.cat([upper, -upper], -2)


def looks_linear_entry(matrix: Tensor) -> Tensor:
    """[H, -H] one above the other, (2m, n): what stands before layers that `looks_linear` made."""
    return torch.cat([matrix, -matrix], -2)


def delta(matrix: Tensor, taps: tuple[int, ...]) -> Tensor:
    """(rows, columns, *taps) kernel of zeros, with the matrix at its middle tap; of even taps at the one before.

    With stride 1 and padding that keeps the map's size the convolution applies the matrix at each position, so that its
    singular values are those of the matrix. Source: Xiao et al. 2018; SAO, Table 5.
    """
    kernel = matrix.new_zeros(*matrix.shape, *taps)
    middle: tuple[Any, ...] = (..., *((k - 1) // 2 for k in taps))
    kernel[middle] = matrix
    return kernel


def _orthonormal(rows: int, columns: int, generator: torch.Generator, batch: int | None, dtype: torch.dtype) -> Tensor:
    """Q of the QR decomposition of Gaussian matrices, with R's diagonal made positive, as Haar's measure asks for."""
    longer, shorter = max(rows, columns), min(rows, columns)
    drawn = torch.randn(batch or 1, longer, shorter, generator=generator, dtype=dtype)
    q, r = torch.linalg.qr(drawn)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    found: Tensor = q * (diagonal / diagonal.abs())[..., None, :]
    found = found if rows == longer else found.mT.conj()
    return (found if batch is not None else found[0]).resolve_conj().contiguous()
