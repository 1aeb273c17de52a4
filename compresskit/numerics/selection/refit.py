"""Least squares on the inputs that are kept: what takes the group lasso's shrinkage out again (debiasing)."""

from typing import NamedTuple

import torch
from torch import Tensor

from compresskit.numerics.group_lasso.problem import Part
from compresskit.numerics.least_squares.solvers import Cholesky, Ridge, Samples


class Refit(NamedTuple):
    """weight: (out, in), 0 outside of what is kept. rank: of the Cxx of that. ridge: in units of its mean diagonal."""

    weight: Tensor
    rank: int
    ridge: float


def refit(part: Part, kept: Tensor, samples: Samples | None = None, ridge: float | None = None) -> Refit:
    """The weight of least E||y - M x||^2 with M = 0 outside of the kept groups.

    kept: (n_groups,) bool. M_S = B_S R_SS^-1, of minimum norm where R_SS is singular. Source: linear neural
    reconstruction 2.4, "debiased". samples: that the moments are of; where they are few for so many inputs, a ridge is
    added by generalised cross-validation, for least squares would fit their noise. None: never. ridge: in its place,
    where one is known.
    """
    columns = kept[part.groups]
    if not bool(columns.any()):
        return Refit(torch.zeros_like(part.cyx), 0, 0.0)
    automatic: Ridge = 0.0 if samples is None else "auto"
    solver = Cholesky(ridge=automatic if ridge is None else ridge)
    solution = solver(part.cxx[columns][:, columns], part.cyx[:, columns], samples)
    weight = torch.zeros_like(part.cyx)
    weight[:, columns] = solution.weight
    return Refit(weight, int(solution.rank or 0), solution.ridge)


def squared_error(part: Part, variance: float, weight: Tensor) -> float:
    """E||y - M x||^2 = c - 2 <M, B> + <M, M R>, for any M; variance: c of this part."""
    return max(variance - 2 * float((weight * part.cyx).sum()) + float((weight * (weight @ part.cxx)).sum()), 0.0)
