"""The group lasso in moments: what is minimised, how near a point is to the minimum, and what makes it smaller."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import copysign

import torch
from torch import Tensor

from compresskit.errors import ConvergenceError
from compresskit.numerics.least_squares.solvers import CUT

Weights = list[Tensor]  # one (out, in) for each part


@dataclass(frozen=True)
class Part:
    """One layer that reads the groups. cxx: (in, in), the R of the document. cyx: (out, in), its W R. groups: (in,),
    the group of each input, counted over the whole problem. Raises ConvergenceError for moments that are not finite."""

    cxx: Tensor
    cyx: Tensor
    groups: Tensor

    def __post_init__(self) -> None:
        if not (bool(self.cxx.isfinite().all()) and bool(self.cyx.isfinite().all())):
            raise ConvergenceError("its moments are not finite; check the checkpoint and the data for NaN")


@dataclass(frozen=True)
class Problem:
    """min over M of 1/2 E||y - M x||^2 + lam sum_g ||M_g||_F, in centred moments.

    With one part, R = cxx and B = cyx this is P(M) = c/2 - <M, B> + 1/2 tr(M R M^T) + lam sum_g ||M_g||_F; where the
    target is the layer's own output, B = W R, and P(M) = 1/2 tr((W - M) R (W - M)^T) + lam sum_g ||M_g||_F. Several
    parts are several layers (or the groups of one convolution) whose inputs are kept or dropped together: their errors
    add up, and ||M_g|| runs over the columns of group g in all of them.

    variance: c = tr(Cyy) of all parts. n_groups: groups are 0 ... n_groups - 1; one may have no column at all.
    Source: linear neural reconstruction, (5) and (6), with groups of 2.5.
    """

    parts: tuple[Part, ...]
    variance: float
    n_groups: int

    @cached_property
    def lam_max(self) -> float:
        """max_g ||B_g||_F: at and above it the minimum is M = 0."""
        return float(self.norms([part.cyx for part in self.parts]).max())

    def norms(self, weights: Sequence[Tensor]) -> Tensor:
        """(n_groups,) Frobenius norm of each group's columns."""
        return self.by_group([weight.square().sum(0) for weight in weights]).sqrt()

    def by_group(self, values: Sequence[Tensor]) -> Tensor:
        """(n_groups,) sums of one value (in,) for each column of each part."""
        total = values[0].new_zeros(self.n_groups)
        for part, value in zip(self.parts, values, strict=True):
            total.index_add_(0, part.groups, value)
        return total

    def products(self, weights: Sequence[Tensor]) -> Weights:
        """M R, part by part."""
        return [weight @ part.cxx for weight, part in zip(weights, self.parts, strict=True)]

    def zeros(self) -> Weights:
        return [torch.zeros_like(part.cyx) for part in self.parts]


@dataclass(frozen=True)
class Certificate:
    """How near M is to the minimum. objective: P(M). gap: (P(M) - D) / P(M) with D <= min P, so an upper bound on the
    relative distance. residual_norms: ||B_g - (M R)_g||_F; at the minimum lam where M_g is not 0, at most lam else."""

    objective: float
    gap: float
    residual_norms: Tensor


@dataclass(frozen=True)
class Solution:
    """Of one lam. weights: one (out, in) for each part, exactly 0 in the groups that are dropped. gap: relative."""

    weights: Weights
    lam: float
    objective: float
    gap: float
    n_iter: int
    converged: bool


Solve = Callable[[float, Weights | None], Solution]  # (lam, a start or None) -> solution


def certify(problem: Problem, weights: Weights, lam: float, products: Weights | None = None) -> Certificate:
    """The duality gap at M. products: M R, where the caller has them.

    With the residual E = y - M x and any theta for which theta ||B_g - (M R)_g||_F <= lam in all groups, theta E is
    feasible for the dual max <y, E'> - 1/2 ||E'||^2, whose value
    theta (c - <M, B>) - theta^2/2 (c - 2 <M, B> + <M, M R>)
    needs moments alone. Of these thetas the best is taken.
    """
    products = problem.products(weights) if products is None else products
    pairs = list(zip(weights, problem.parts, products, strict=True))
    linear = sum(float((weight * part.cyx).sum()) for weight, part, _ in pairs)
    quadratic = sum(float((weight * product).sum()) for weight, _, product in pairs)
    residual = problem.norms([part.cyx - product for _, part, product in pairs])
    c = problem.variance
    objective = c / 2 - linear + quadratic / 2 + lam * float(problem.norms(weights).sum())
    error = max(c - 2 * linear + quadratic, 0.0)
    theta = (c - linear) / error if error > 0 else 1.0
    steepest = float(residual.max())
    if abs(theta) * steepest > lam:  # below 0 where M is worse than nothing
        theta = copysign(lam / steepest, theta)
    dual = theta * (c - linear) - theta**2 * error / 2
    return Certificate(objective, max(objective - dual, 0.0) / objective if objective > 0 else 0.0, residual)


@dataclass(frozen=True)
class Reduction:
    """A smaller problem with the same minimum, and the way back."""

    problem: Problem
    alive: tuple[Tensor, ...]
    bases: tuple[Tensor | None, ...]
    shapes: tuple[tuple[int, int], ...]

    def restore(self, weights: Weights) -> Weights:
        """Weights of the smaller problem as weights of the whole."""
        whole = []
        for weight, alive, basis, shape in zip(weights, self.alive, self.bases, self.shapes, strict=True):
            full = weight.new_zeros(shape)
            full[:, alive] = weight if basis is None else basis @ weight
            whole.append(full)
        return whole


def reduce(problem: Problem) -> Reduction:
    """Without inputs that never vary, and with outputs rotated where there are more of them than inputs.

    The first have R = 0, so their weight is 0. An R that the cancellation of large means left indefinite becomes the
    nearest one that is not, for P would have no minimum. Only the row space of B matters: with B = U B', U^T U = 1, the
    minimum is M = U M', and the norms of groups are the same.
    """
    parts, alive, bases = [], [], []
    for part in problem.parts:
        varies = part.cxx.diagonal() > CUT * part.cxx.diagonal().max()
        cxx, cyx = _semidefinite(part.cxx[varies][:, varies]), part.cyx[:, varies]
        basis = None
        if len(cyx) > cyx.shape[1]:
            basis, cyx = torch.linalg.qr(cyx)
        parts.append(Part(cxx, cyx, part.groups[varies]))
        alive.append(varies)
        bases.append(basis)
    shapes = tuple((part.cyx.shape[0], part.cyx.shape[1]) for part in problem.parts)
    return Reduction(Problem(tuple(parts), problem.variance, problem.n_groups), tuple(alive), tuple(bases), shapes)


def _semidefinite(cxx: Tensor) -> Tensor:
    """The matrix, without its negative eigenvalues where they are more than the rounding of a sum."""
    if not len(cxx):
        return cxx
    shifted = cxx.clone()
    shifted.diagonal().add_(CUT * cxx.diagonal().max())
    if not bool(torch.linalg.cholesky_ex(shifted).info):
        return cxx
    values, vectors = torch.linalg.eigh(cxx)
    nearest: Tensor = vectors * values.clamp(min=0) @ vectors.T
    return nearest
