"""Alternating direction method of multipliers, on one eigendecomposition of R for every lam."""

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from compresskit.numerics.group_lasso.problem import Problem, Solution, Solve, Weights
from compresskit.numerics.group_lasso.proximal import Best, shrink
from compresskit.numerics.group_lasso.variational import alone
from compresskit.options import option

_RELAXATION = 1.6  # Boyd et al. 2011, 3.4.3: 1.5 to 1.8
_EVERY = 10  # iterations between certificates, and between changes of rho
_APART = 2.0  # ratio of the residuals beyond which rho moves
_FARTHEST = 10.0  # that rho moves at once


@option
class Admm:
    """Splits the fit from the penalty; every step costs two products, whatever the conditioning."""

    kind: Literal["admm"] = "admm"
    tol: Annotated[float, Gt(0)] = 1e-6  # relative duality gap
    max_iter: Annotated[int, Gt(0)] = 20_000

    def __call__(self, problem: Problem) -> Solve:
        """Solver of `problem` at any lam.

        M = (B + rho (Z - U)) (R + rho I)^-1, with R = V S V^T decomposed once;
        Z = shrink(a M + (1 - a) Z + U, lam / rho);  U = U + a M + (1 - a) Z_before - Z.
        Certified and returned is Z, which is sparse. At the minimum rho U = B - Z R, so a start for U follows from the
        weights. rho is moved so that both residuals, each relative to its own scale, stay alike.
        Source: Boyd et al. 2011, 3.4.1 and 6.4; Wohlberg 2017, (25) and (26) for the relative residuals.
        """
        spectra = [torch.linalg.eigh(part.cxx) for part in problem.parts]

        def solve(lam: float, start: Weights | None) -> Solution:
            weights = problem.zeros() if start is None else start
            products = problem.products(weights)
            best = Best(problem, lam, self.tol)
            if best.offer(weights, 0, products):
                return best.solution(0)
            norms = alone(problem, lam) if start is None else problem.norms(start)
            rho = lam / float(norms[norms > 0].mean()) if bool((norms > 0).any()) else lam
            duals = [(part.cyx - product) / rho for part, product in zip(problem.parts, products, strict=True)]
            state = _State(weights, duals, rho)
            for n_iter in range(1, self.max_iter + 1):
                state, primal, dual = _advance(problem, spectra, state, lam)
                if n_iter % _EVERY == 0 or n_iter == self.max_iter:
                    if best.offer(state.sparse, n_iter):
                        break
                    state = state.balanced(primal, dual)
            return best.solution(n_iter)

        return solve


@dataclass(frozen=True)
class _State:
    """sparse: Z. duals: U, in units of the weights. rho: of R."""

    sparse: Weights
    duals: Weights
    rho: float

    def balanced(self, primal: float, dual: float) -> "_State":
        """rho larger where the copies disagree more than they move, smaller where less."""
        ratio = primal / dual if dual > 0 else 1.0
        if 1 / _APART < ratio < _APART or ratio == 0:
            return self
        change = min(max(ratio**0.5, 1 / _FARTHEST), _FARTHEST)
        return _State(self.sparse, [dual / change for dual in self.duals], self.rho * change)


def _advance(
    problem: Problem, spectra: list[tuple[Tensor, Tensor]], state: _State, lam: float
) -> tuple[_State, float, float]:
    """The next state and its relative residuals, ||M - Z|| / ||Z|| and ||Z - Z_before|| / ||U||."""
    smooth, before, rho = [], state.sparse, state.rho
    for part, (values, vectors), z, u in zip(problem.parts, spectra, before, state.duals, strict=True):
        smooth.append(((part.cyx + rho * (z - u)) @ vectors / (values + rho)) @ vectors.T)
    relaxed = [_RELAXATION * m + (1 - _RELAXATION) * z for m, z in zip(smooth, before, strict=True)]
    raised = [r + u for r, u in zip(relaxed, state.duals, strict=True)]
    sparse = shrink(problem, raised, lam / rho)
    duals = [r - z for r, z in zip(raised, sparse, strict=True)]
    primal = _distance(smooth, sparse) / max(_norm(sparse), _norm(smooth), torch.finfo(torch.float64).tiny)
    dual = _distance(sparse, before) / max(_norm(duals), torch.finfo(torch.float64).tiny)
    return _State(sparse, duals, rho), primal, dual


def _norm(weights: Weights) -> float:
    return sqrt(sum(float(weight.square().sum()) for weight in weights))


def _distance(one: Weights, other: Weights) -> float:
    return _norm([a - b for a, b in zip(one, other, strict=True)])
