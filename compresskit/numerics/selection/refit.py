"""Least squares on the inputs that are kept: what takes the group lasso's shrinkage out again (debiasing)."""

import torch
from torch import Tensor

from compresskit.numerics.group_lasso.problem import Part
from compresskit.numerics.least_squares.solvers import Cholesky, Samples


def refit(part: Part, kept: Tensor, samples: Samples | None = None) -> tuple[Tensor, int]:
    """Weight (out, in) of least E||y - M x||^2 with M = 0 outside of the kept groups, and the rank of their Cxx.

    kept: (n_groups,) bool. M_S = B_S R_SS^-1, of minimum norm where R_SS is singular. Source: linear neural
    reconstruction 2.4, "debiased". samples: that the moments are of; where they are few for so many inputs, a ridge is
    added by generalised cross-validation, for least squares would fit their noise. None: never.
    """
    columns = kept[part.groups]
    if not bool(columns.any()):
        return torch.zeros_like(part.cyx), 0
    solver = Cholesky(ridge=0.0 if samples is None else "auto")
    solution = solver(part.cxx[columns][:, columns], part.cyx[:, columns], samples)
    weight = torch.zeros_like(part.cyx)
    weight[:, columns] = solution.weight
    return weight, int(solution.rank or 0)


def squared_error(part: Part, variance: float, weight: Tensor) -> float:
    """E||y - M x||^2 = c - 2 <M, B> + <M, M R>, for any M; variance: c of this part."""
    return max(variance - 2 * float((weight * part.cyx).sum()) + float((weight * (weight @ part.cxx)).sum()), 0.0)
