"""Accelerated proximal gradients (FISTA), restarted where the momentum leads uphill."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt

from compresskit.numerics.group_lasso.problem import Problem, Solution, Solve, Weights
from compresskit.numerics.group_lasso.proximal import Best, proximal_step
from compresskit.options import option

_EVERY = 10  # iterations between certificates


@option
class Fista:
    """Proximal gradients with momentum; restarted, it needs no guess of the conditioning. The document's solver."""

    kind: Literal["fista"] = "fista"
    tol: Annotated[float, Gt(0)] = 1e-6  # relative duality gap
    max_iter: Annotated[int, Gt(0)] = 20_000

    def __call__(self, problem: Problem) -> Solve:
        """Solver of `problem` at any lam.

        M_k = prox(A_k - (A_k R - B) / L) with threshold lam / L and A_k = M_k-1 + (k-1)/(k+2) (M_k-1 - M_k-2); L is the
        largest eigenvalue of R over the parts. k starts again at 1 where <A_k - M_k, M_k - M_k-1> > 0. One product
        with R an iteration: A R follows from the products of M.
        Source: linear neural reconstruction, Algorithm 1 and 5.4, whose step is of 1/L on the smooth part, not of any
        other size, and whose A goes down the gradient; O'Donoghue and Candes 2015, 3.2 (the gradient's restart).
        """
        curvature = largest_eigenvalue(problem)

        def solve(lam: float, start: Weights | None) -> Solution:
            weights = problem.zeros() if start is None else start
            products = problem.products(weights)
            best = Best(problem, lam, self.tol)
            if best.offer(weights, 0, products):
                return best.solution(0)
            ahead, products_ahead, since = weights, products, 1
            for n_iter in range(1, self.max_iter + 1):
                following = proximal_step(problem, ahead, products_ahead, lam, curvature)
                products_following = problem.products(following)
                if (n_iter % _EVERY == 0 or n_iter == self.max_iter) and best.offer(
                    following, n_iter, products_following
                ):
                    break
                since = 1 if _uphill(ahead, weights, following) else since + 1
                momentum = (since - 1) / (since + 2)
                ahead = _beyond(weights, following, momentum)
                products_ahead = _beyond(products, products_following, momentum)
                weights, products = following, products_following
            return best.solution(n_iter)

        return solve


def largest_eigenvalue(problem: Problem) -> float:
    """Of the R of any part; above 0 even where no input varies, so that one may divide by it."""
    largest = max(float(torch.linalg.eigvalsh(part.cxx)[-1]) for part in problem.parts if len(part.cxx))
    return max(largest, torch.finfo(torch.float64).tiny)


def _uphill(ahead: Weights, before: Weights, after: Weights) -> bool:
    return sum(float(((a - m) * (m - b)).sum()) for a, b, m in zip(ahead, before, after, strict=True)) > 0


def _beyond(before: Weights, after: Weights, momentum: float) -> Weights:
    return [m + momentum * (m - b) for b, m in zip(before, after, strict=True)]
