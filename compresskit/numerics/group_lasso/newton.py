"""Projected Newton steps on the variational form: the group lasso as a smooth problem in one number for each group."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from compresskit.numerics.group_lasso.problem import Problem, Solution, Solve, Weights
from compresskit.numerics.group_lasso.proximal import Best
from compresskit.numerics.group_lasso.variational import Inner, alone
from compresskit.options import option

_ARMIJO = 1e-4  # share of the decrease that the slope promises which a step must bring (Bertsekas 1982)
_ROUNDING = 1e-15  # of f, as a share of the variance: f moves as the square of the gap, which can still be narrowed
_HALVINGS = 40
_JOINING = 16  # groups at 0 that may join in one step where few are active
_RIDGE = 1e-12  # of the Hessian's mean diagonal: it is singular where groups are copies of one another


@option
class Newton:
    """Projected Newton on the variational form; an active set keeps it to the groups that matter."""

    kind: Literal["newton"] = "newton"
    tol: Annotated[float, Gt(0)] = 1e-6  # relative duality gap
    max_iter: Annotated[int, Gt(0)] = 200

    def __call__(self, problem: Problem) -> Solve:
        """Solver of `problem` at any lam.

        With D = diag(sqrt(eta)) repeated over each group's columns, min_M P(M) = min over eta >= 0 of
        f(eta) = c/2 - 1/2 tr(B D K^-1 D B^T) + lam/2 sum eta,  K = D R D + lam I,  M = B D K^-1 D,
        which is convex; and with G = B - M R
        df/deta_g = lam/2 - ||G_g||^2 / (2 lam),
        d2f/deta_g deta_h = sum over columns i of g, j of h of (G^T G)_ij (R - R D K^-1 D R)_ij / lam^2.
        At the minimum eta_g = ||M_g||_F. Source: linear neural reconstruction 5.5, its inner minimum in closed form and
        without its smoothing.
        """

        def solve(lam: float, start: Weights | None) -> Solution:
            eta = problem.norms(start) if start is not None else alone(problem, lam)
            state = Inner.at(problem, eta, lam)
            best, before = Best(problem, lam, self.tol), float("inf")
            for n_iter in range(1, self.max_iter + 1):
                if best.offer(state.weights, n_iter, state.products):
                    break
                if best.n_iter < n_iter and state.value >= before:  # rounding leaves nothing to gain
                    break
                before = state.value
                following = _step(problem, state, best.last.residual_norms, lam)
                if following is None:
                    break
                state = following
            return best.solution(n_iter)

        return solve


def _step(problem: Problem, state: Inner, residual_norms: Tensor, lam: float) -> Inner | None:
    """The next eta by a Newton step on the groups that are free to move, shortened until f drops; None where none does.

    Free are the groups above 0 and the worst of those at 0 that would gain; one that a step takes below 0 stays there.
    """
    gradient = lam / 2 - residual_norms.square() / (2 * lam)
    (chosen,) = _with_worst(state.eta > 0, gradient).nonzero(as_tuple=True)
    direction = torch.zeros_like(state.eta)
    direction[chosen] = _solve(_hessian(problem, state, chosen, lam), gradient[chosen], state.eta[chosen])
    rounding = _ROUNDING * problem.variance
    length = 1.0
    for _ in range(_HALVINGS):
        eta = (state.eta + length * direction).clamp(min=0)
        promised = float((gradient * (eta - state.eta)).sum())
        following = Inner.at(problem, eta, lam)
        if following.value <= state.value + _ARMIJO * promised + rounding and promised < 0:
            return following
        length /= 2
    return None


def _with_worst(active: Tensor, gradient: Tensor) -> Tensor:
    """The active groups and, of the others whose gradient is negative, the steepest: as many again as are active."""
    gains = torch.where(active, torch.zeros_like(gradient), gradient)
    count = min(max(_JOINING, int(active.sum())), int((gains < 0).sum()))
    joined = active.clone()
    joined[gains.topk(count, largest=False).indices] = True
    return joined


def _hessian(problem: Problem, state: Inner, chosen: Tensor, lam: float) -> Tensor:
    """(chosen, chosen) second derivatives of f."""
    place = torch.full_like(state.eta, -1, dtype=torch.int64)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    total = state.eta.new_zeros(len(chosen), len(chosen))
    for part, product, (active, root, factor) in zip(problem.parts, state.products, state.factors, strict=True):
        (columns,) = (place[part.groups] >= 0).nonzero(as_tuple=True)
        groups = place[part.groups[columns]]
        residual = (part.cyx - product)[:, columns]
        half = torch.linalg.solve_triangular(factor, part.cxx[active][:, columns] * root[:, None], upper=False)
        entries = (residual.T @ residual) * (part.cxx[columns][:, columns] - half.T @ half)
        rows = entries.new_zeros(len(chosen), len(columns)).index_add_(0, groups, entries)
        total.index_add_(1, groups, rows)
    return total / lam**2


def _solve(hessian: Tensor, gradient: Tensor, eta: Tensor) -> Tensor:
    """- H^-1 gradient, with a ridge where H is singular; groups that would only sink from 0 are left where they are."""
    ridge = hessian.diagonal().mean() * _RIDGE
    hessian = hessian + ridge * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    free = torch.ones_like(eta, dtype=torch.bool)
    direction = torch.zeros_like(eta)
    while bool(free.any()):
        factor, failed = torch.linalg.cholesky_ex(hessian[free][:, free])
        if bool(failed):
            return -gradient / hessian.diagonal()
        direction.zero_()
        direction[free] = -torch.cholesky_solve(gradient[free, None], factor)[:, 0]
        stuck = free & (eta == 0) & (direction < 0)
        if not bool(stuck.any()):
            break
        free &= ~stuck
    return direction
