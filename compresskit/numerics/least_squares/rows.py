"""Least squares in which every output has a set of inputs of its own, as masks of single weights leave them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.errors import ConvergenceError
from compresskit.numerics.least_squares.solvers import (
    CUT,
    PLENTY,
    Samples,
    eigenpairs,
    expected_errors,
    possible_shifts,
    varying,
)

BATCH = 1 << 24  # entries of the matrices that are factorised together: 128 MiB, and as much again for the factors
PADDED = 0.9  # size of the smallest of these as a share of the largest
RAISES = 8  # of a shift, each a hundredfold: behind them it is above the trace
SPECTRA = 16  # of rows, which tell the ridge of all that need one


@dataclass(frozen=True)
class RowSolution:
    """weight: (out, in), 0 outside of the supports. error: (out,) E(y - W x)^2. shift: lambda of rows with a ridge."""

    weight: Tensor
    error: Tensor
    shift: float


def solve_rows(cxx: Tensor, cyx: Tensor, variance: Tensor, support: Tensor, count: int) -> RowSolution:
    """For each row i with its support S: w_S = (C_SS + lambda I)^-1 c_S, the least of E(y - w x)^2 + lambda |w|^2.

    cxx: (in, in) covariance of the inputs, float64. cyx: (out, in). variance: (out,) of y. support: (out, in) bool.
    count: of samples. Weights of inputs that do not vary are 0. lambda is 1e-12 tr C at least, below which there is
    rounding alone, and more where rounding left a matrix that is not positive, so singular moments are as good as any;
    and, for rows without plenty of samples for each of their inputs, what promises the least error for a few of them
    together. The error never is above `variance`.

    Equal supports are factorised once, as many at a time as `BATCH` has room for: sum |S|^3 / 3 multiplications. Of 512
    rows of 4,608 inputs that is 1.7e10 with a tenth of them left, where a product with Cxx takes 1.1e10, and 2.1e12
    with half.
    """
    diagonal = cxx.diagonal()
    support = support.to(cxx.device) & varying(diagonal)
    sizes = support.sum(1)
    ridged = count <= PLENTY * (sizes + 1)
    shift = _shift(cxx, cyx, variance, support, ridged & (sizes > 0), count)
    shifts = CUT * diagonal.clamp(min=0).sum() + shift * ridged  # rounding leaves inputs that are constant below 0
    weight = torch.zeros_like(cyx)
    for rows in _batches(support):  # (supports, rows of each)
        first = rows[:, 0]
        weight[rows], used = _solve(cxx, cyx[rows], support[first], shifts[first])
        shifts[rows] = used[:, None]
    error = variance - (weight * cyx).sum(1) - shifts * weight.square().sum(1)
    return RowSolution(weight, error.clamp(min=0), shift)


def _solve(cxx: Tensor, sides: Tensor, support: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """(supports, rows of each, in) solutions, and the shifts that were used. sides: of the same shape. support:
    (supports, in) bool, of similar sizes: smaller ones are padded by ones on the diagonal. shifts: (supports,), raised
    where rounding of the moments, of inputs whose means are large, leaves a matrix that is not positive."""
    sizes = support.sum(1)
    places = support.byte().argsort(dim=1, descending=True, stable=True)[:, : int(sizes.max())]
    inside = torch.arange(places.shape[1], device=places.device) < sizes[:, None]
    blocks = cxx[places[:, :, None], places[:, None, :]]
    blocks.masked_fill_(~(inside[:, :, None] & inside[:, None, :]), 0.0)
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(inside, shifts[:, None], 1.0))
    factor, failed = torch.linalg.cholesky_ex(blocks)
    for _ in range(RAISES):
        if not bool(failed.any()):
            break
        raised = torch.where(failed > 0, shifts * 100, shifts)
        diagonal.add_(inside * (raised - shifts)[:, None])
        shifts = raised
        factor, failed = torch.linalg.cholesky_ex(blocks)
    else:
        raise ConvergenceError("moments cannot be factorised with any ridge; check the data and the checkpoint for NaN")
    places = places[:, None, :].expand(-1, sides.shape[1], -1)
    right = sides.gather(2, places) * inside[:, None, :]
    found = torch.cholesky_solve(right.mT, factor).mT
    return torch.zeros_like(sides).scatter_(2, places, found), shifts


def _batches(support: Tensor) -> Iterator[Tensor]:
    """(supports, rows of each) numbers of rows: those in a row of it have the same support; all rows but those that
    have no input."""
    kinds, kind_of = support.unique(dim=0, return_inverse=True)
    times = kind_of.bincount()
    rows = kind_of.argsort(stable=True).split(times.tolist())
    order = sorted(
        zip(times.tolist(), kinds.sum(1).tolist(), rows, strict=True), key=lambda kind: kind[:2], reverse=True
    )
    batch: list[Tensor] = []
    most = 0
    for _, size, own in order:
        full = (len(batch) + 1) * most**2 > BATCH or size < PADDED * most
        if batch and (full or len(own) != len(batch[0])):
            yield torch.stack(batch)
            batch = []
        if size:
            most = size if not batch else most
            batch.append(own)
    if batch:
        yield torch.stack(batch)


def _shift(cxx: Tensor, cyx: Tensor, variance: Tensor, support: Tensor, ridged: Tensor, count: int) -> float:
    """The lambda of least expected error, summed over rows of all sizes among those that need a ridge, (out,) bool."""
    rows = ridged.nonzero()[:, 0]
    if not len(rows):
        return 0.0
    rows = rows[support[rows].sum(1).argsort(stable=True)]
    chosen = torch.linspace(0, len(rows) - 1, min(SPECTRA, len(rows))).round().long().tolist()
    shifts = possible_shifts(cxx, float(cxx.diagonal().mean()))
    expected = torch.zeros_like(shifts)
    for row in rows[torch.tensor(chosen, device=rows.device)].tolist():
        own = support[row]
        values, basis = eigenpairs(cxx[own][:, own], CUT, count)
        expected += expected_errors(
            values, cyx[row : row + 1, own] @ basis, Samples(count, float(variance[row])), shifts
        )
    return float(shifts[expected.argmin()])
