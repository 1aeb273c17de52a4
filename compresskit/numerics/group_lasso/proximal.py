"""What solvers share that move all weights at once: the proximal map of the penalty, and the best point so far."""

from math import inf

from compresskit.numerics.group_lasso.problem import Certificate, Problem, Solution, Weights, certify


def shrink(problem: Problem, weights: Weights, threshold: float) -> Weights:
    """argmin over Z of 1/2 ||Z - M||^2 + threshold sum_g ||Z_g||_F: M_g (1 - threshold / ||M_g||_F)+, so that groups
    come out exactly 0. threshold > 0."""
    factors = (1 - threshold / problem.norms(weights)).clamp(min=0)
    return [weight * factors[part.groups] for weight, part in zip(weights, problem.parts, strict=True)]


def proximal_step(problem: Problem, weights: Weights, products: Weights, lam: float, curvature: float) -> Weights:
    """shrink(M - (M R - B) / L, lam / L); it lowers P where L is at least every part's largest eigenvalue of R.

    products: M R. curvature: L.
    """
    moved = [
        weight - (product - part.cyx) / curvature
        for weight, product, part in zip(weights, products, problem.parts, strict=True)
    ]
    return shrink(problem, moved, lam / curvature)


class Best:
    """Certifies points of one lam and keeps that of the least gap.

    last: the certificate of the latest point. n_iter: the iteration that the best one comes from.
    """

    last: Certificate
    n_iter: int
    _weights: Weights
    _certificate: Certificate

    def __init__(self, problem: Problem, lam: float, tol: float) -> None:
        self._problem, self._lam, self._tol, self._gap = problem, lam, tol, inf

    def offer(self, weights: Weights, n_iter: int, products: Weights | None = None) -> bool:
        """Whether the best of all points offered so far is within the tolerance. products: M R, where known."""
        self.last = certify(self._problem, weights, self._lam, products)
        if self.last.gap < self._gap:
            self._weights, self._certificate, self._gap, self.n_iter = weights, self.last, self.last.gap, n_iter
        return self._gap <= self._tol

    def solution(self, n_iter: int) -> Solution:
        """The best point; n_iter: iterations in all. Offer one first."""
        objective, gap = self._certificate.objective, self._gap
        return Solution(self._weights, self._lam, objective, gap, n_iter, gap <= self._tol)
