"""The variational form of the group lasso: with one number for each group held, the minimum over weights is closed."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from compresskit.errors import ConvergenceError
from compresskit.numerics.group_lasso.problem import Problem, Weights


@dataclass(frozen=True)
class Inner:
    """The minimum over M of 1/2 E||y - M x||^2 + lam/2 sum_g (||M_g||^2 / eta_g + eta_g), and what it took to find it.

    eta: (n_groups,), at least 0; a group of 0 has M_g = 0. value: of the minimum, at least min P. weights: M.
    products: M R. factors: of each part, the columns of groups with eta > 0, their sqrt(eta), and the lower Cholesky
    factor of K = D R D + lam I on them, D = diag(sqrt(eta)): M = B D K^-1 D. In this form neither eta = 0 nor a
    singular R needs care. Source: linear neural reconstruction, (8).
    """

    eta: Tensor
    value: float
    weights: Weights
    products: Weights
    factors: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def at(cls, problem: Problem, eta: Tensor, lam: float) -> Self:
        """Raises ConvergenceError where lam is lost in the rounding of R."""
        value, weights, products, factors = problem.variance / 2 + lam / 2 * float(eta.sum()), [], [], []
        for part in problem.parts:
            (columns,) = (eta[part.groups] > 0).nonzero(as_tuple=True)
            root = eta[part.groups[columns]].sqrt()
            kernel = part.cxx[columns][:, columns] * root * root[:, None]
            kernel.diagonal().add_(lam)
            factor, failed = torch.linalg.cholesky_ex(kernel)
            if bool(failed):
                raise ConvergenceError(f"lambda {lam:.3g} is less than the moments are exact to; give a larger one")
            scaled = part.cyx[:, columns] * root
            half = torch.linalg.solve_triangular(factor, scaled.T, upper=False)
            weight = torch.linalg.solve_triangular(factor.T, half, upper=True).T * root
            value -= float(half.square().sum()) / 2
            full = torch.zeros_like(part.cyx)
            full[:, columns] = weight
            weights.append(full)
            products.append(weight @ part.cxx[columns])
            factors.append((columns, root, factor))
        return cls(eta, value, weights, products, factors)


def alone(problem: Problem, lam: float) -> Tensor:
    """(n_groups,) norms that the groups would have if each were alone and its columns white: 0 where lam is too large
    for it. A start, and the scale of the solution."""
    norms = problem.norms([part.cyx for part in problem.parts])
    variances = problem.by_group([part.cxx.diagonal() for part in problem.parts])
    return ((norms - lam) / variances.clamp(min=torch.finfo(variances.dtype).tiny)).clamp(min=0)
