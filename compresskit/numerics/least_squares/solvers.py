"""Solvers of the normal equations W Cxx = Cyx. Each takes moments alone and says how well it did."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from compresskit.numerics.moments.matrix import Matrix, dense
from compresskit.options import option

# Share of the largest eigenvalue below which sums in float64 of activations in float32 hold rounding alone.
CUT = 1e-12


@dataclass(frozen=True)
class Solution:
    """Weight (out, in) of a least-squares problem, and what is known of its quality.

    residual: ||W Cxx - Cyx||_F / ||Cyx||_F. rank: of Cxx, None where the method does not know it. method: what was
    really used, which differs from what was asked when a factorisation had to give way to another.
    """

    weight: Tensor
    rank: int | None
    residual: float
    n_iter: int
    converged: bool
    method: str


@option
class Cholesky:
    """Factorisation of Cxx; where it is singular to rounding, gives way to `eigh` and says so."""

    kind: Literal["cholesky"] = "cholesky"
    ridge: Annotated[float, Ge(0)] = 0.0  # added to the diagonal, in units of its mean

    def __call__(self, cxx: Matrix, cyx: Tensor) -> Solution:
        """Solution of W (Cxx + ridge mean(diag Cxx) I) = Cyx; cxx (in, in) and cyx (out, in), float64.

        Inputs of variance zero get weight zero (the minimum norm), so a dead pixel does not spoil the factorisation.
        """
        cxx = _ridged(dense(cxx), self.ridge)
        alive = _alive(cxx.diagonal())
        block = cxx if bool(alive.all()) else cxx[alive][:, alive]
        factor, failed = torch.linalg.cholesky_ex(block)
        if block.numel() == 0 or bool(failed) or _nearly_singular(factor):
            return EigenDecomposition()(cxx, cyx)
        weight = torch.zeros_like(cyx)
        weight[:, alive] = torch.cholesky_solve(cyx[:, alive].T, factor).T
        return Solution(weight, int(alive.sum()), _residual(cxx, cyx, weight), 1, True, "cholesky")


@option
class EigenDecomposition:
    """Minimum-norm solution on the eigenvectors of Cxx whose eigenvalue exceeds a stated cut."""

    kind: Literal["eigh"] = "eigh"
    ridge: Annotated[float, Ge(0)] = 0.0  # added to the diagonal, in units of its mean
    cut: Annotated[float, Gt(0)] = CUT  # share of the largest eigenvalue

    def __call__(self, cxx: Matrix, cyx: Tensor) -> Solution:
        """W = Cyx V diag(1/s) V^T over the eigenpairs (s, V) with s > cut max(s); cxx (in, in), cyx (out, in)."""
        cxx = _ridged(dense(cxx), self.ridge)
        values, vectors = torch.linalg.eigh(cxx)
        kept = values > self.cut * values[-1].clamp(min=0)
        basis = vectors[:, kept]
        weight = (cyx @ basis / values[kept]) @ basis.T
        return Solution(weight, int(kept.sum()), _residual(cxx, cyx, weight), 1, True, "eigh")


@option
class ConjugateGradient:
    """Conjugate gradients with a diagonal preconditioner: products with Cxx only, so it may stay on disk."""

    kind: Literal["cg"] = "cg"
    ridge: Annotated[float, Ge(0)] = 0.0  # added to the diagonal, in units of its mean
    tol: Annotated[float, Gt(0)] = 1e-8  # on the residual of every output, relative to its right-hand side
    max_iter: Annotated[int, Gt(0)] | None = None  # default 10 x in

    def __call__(self, cxx: Matrix, cyx: Tensor) -> Solution:
        """Solves all outputs at once, each with step lengths of its own; cxx (in, in), cyx (out, in).

        Stops when max_i ||r_i|| / ||b_i|| <= tol, which is the certificate; a row that has arrived stands still.
        Started from zero, so that inputs of variance zero keep weight zero. Source: Hestenes and Stiefel 1952.
        """
        diagonal = cxx.diagonal()
        shift = self.ridge * diagonal.mean()
        inverse = torch.where(_alive(diagonal), 1 / (diagonal + shift), 0.0)
        bound = self.tol * cyx.norm(dim=1)
        weight, residual = torch.zeros_like(cyx), cyx.clone()
        direction = residual * inverse
        slope = (residual * direction).sum(1)
        limit = self.max_iter or 10 * cyx.shape[1]
        n_iter = 0
        while n_iter < limit and bool((active := residual.norm(dim=1) > bound).any()):
            image = (cxx @ direction.T).T + shift * direction
            curvature = (direction * image).sum(1)
            active &= curvature > 0
            if not bool(active.any()):
                break
            step = torch.where(active, slope / curvature, 0.0).unsqueeze(1)
            weight += step * direction
            residual -= step * image
            scaled = residual * inverse
            new_slope = (residual * scaled).sum(1)
            direction = scaled + torch.where(active, new_slope / slope, 0.0).unsqueeze(1) * direction
            slope, n_iter = new_slope, n_iter + 1
        arrived = bool((residual.norm(dim=1) <= bound).all())
        return Solution(weight, None, float(residual.norm()) / _scale(cyx), n_iter, arrived, "cg")


Solver = Cholesky | EigenDecomposition | ConjugateGradient


def _ridged(cxx: Tensor, ridge: float) -> Tensor:
    if ridge == 0:
        return cxx
    return cxx + ridge * cxx.diagonal().mean() * torch.eye(len(cxx), dtype=cxx.dtype, device=cxx.device)


def _alive(diagonal: Tensor) -> Tensor:
    """Inputs that vary by more than rounding: a tap that sees only padding may not come out as an exact zero."""
    return diagonal > CUT * diagonal.max()


def _nearly_singular(factor: Tensor) -> bool:
    pivots = factor.diagonal().square()
    return bool(pivots.min() <= CUT * pivots.max())


def _residual(cxx: Tensor, cyx: Tensor, weight: Tensor) -> float:
    return float((weight @ cxx - cyx).norm()) / _scale(cyx)


def _scale(cyx: Tensor) -> float:
    return max(float(cyx.norm()), torch.finfo(cyx.dtype).tiny)


SOLVERS: dict[str, type[Cholesky] | type[EigenDecomposition] | type[ConjugateGradient]] = {
    "cholesky": Cholesky,
    "eigh": EigenDecomposition,
    "cg": ConjugateGradient,
}
