"""Alternate minimisation over the weights and one number for each group."""

from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.numerics.group_lasso.fista import largest_eigenvalue
from compresskit.numerics.group_lasso.problem import Problem, Solution, Solve, Weights
from compresskit.numerics.group_lasso.proximal import Best, proximal_step
from compresskit.numerics.group_lasso.variational import Inner, alone
from compresskit.options import option

_SMOOTHING = 0.1  # sqrt(eps) at the start, as a share of the largest norm that a group would have alone
_SHRINKING = 0.5  # of sqrt(eps), each iteration
_LEAST = 1e-4  # share at which it is let go, and groups that are 0 leave the linear system


@option
class Alternating:
    """The document's alternate minimisation (5.5): simple, and quick where there are few inputs."""

    kind: Literal["alternating"] = "alternating"
    tol: Annotated[float, Gt(0)] = 1e-6  # relative duality gap
    max_iter: Annotated[int, Gt(0)] = 5_000

    def __call__(self, problem: Problem) -> Solve:
        """Solver of `problem` at any lam.

        In turn eta_g = sqrt(||M_g||^2 + eps) and M = B (R + lam D(1/eta))^-1 = B D(eta)^1/2 K^-1 D(eta)^1/2 with
        K = D(eta)^1/2 R D(eta)^1/2 + lam I; eps shrinks, to 0 in the end. Between the two M takes one proximal gradient
        step, which lowers P too, makes groups that sink towards 0 exactly 0, and brings back those that should not be
        there. That point is certified and returned.
        Source: linear neural reconstruction, 5.5 and Algorithm 3. Corrected against its objective (8): B is without the
        factor 2 (1/2 ||y - M x||^2 has the gradient M R - B); the smoothing that leads to this eta is
        lam/2 eps sum_g 1/eta_g. The proximal step is ours: without it no group is ever 0, and no gap closes.
        """
        curvature = largest_eigenvalue(problem)
        scale = float(alone(problem, 0.0).max())

        def solve(lam: float, start: Weights | None) -> Solution:
            weights = problem.zeros() if start is None else start
            best = Best(problem, lam, self.tol)
            if best.offer(weights, 0):
                return best.solution(0)
            smoothing = _SMOOTHING * scale
            for n_iter in range(1, self.max_iter + 1):
                eta = (problem.norms(weights).square() + smoothing**2).sqrt()
                found = Inner.at(problem, eta, lam)
                smoothing = smoothing * _SHRINKING if smoothing > _LEAST * scale else 0.0
                weights = proximal_step(problem, found.weights, found.products, lam, curvature)
                if best.offer(weights, n_iter):
                    break
            return best.solution(n_iter)

        return solve
