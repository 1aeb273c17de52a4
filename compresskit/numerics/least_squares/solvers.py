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
PLENTY = 50  # samples for each unknown, with which least squares fits 2 % of the noise: no ridge gains more than that
_VECTORS, _ITERATIONS = 4, 6  # that look for the ends of a spectrum
PROBES = 8  # random vectors that the trace of an operator is estimated with

Ridge = Annotated[float, Ge(0)] | Literal["auto"]


@dataclass(frozen=True)
class Samples:
    """What `ridge: auto` has to know beside the moments. count: of samples. variance: tr(Cyy) of these outputs."""

    count: int
    variance: float


@dataclass(frozen=True)
class Solution:
    """Weight (out, in) of a least-squares problem, and what is known of its quality.

    residual: ||W (Cxx + ridge) - Cyx||_F / ||Cyx||_F. rank: of Cxx, None where the method does not know it. method:
    what was really used, which differs from what was asked when a factorisation had to give way to another.
    freedom: degrees of freedom, tr(Cxx (Cxx + lambda I)^-1), the rank where there is no ridge.
    ridge: that was used, in units of the mean diagonal.
    """

    weight: Tensor
    rank: int | None
    residual: float
    n_iter: int
    converged: bool
    method: str
    freedom: float
    ridge: float = 0.0


@option
class Cholesky:
    """Factorisation of Cxx; where it is singular to rounding, or `auto` needs eigenvalues, gives way to `eigh`."""

    kind: Literal["cholesky"] = "cholesky"
    ridge: Ridge = "auto"  # added to the diagonal, in units of its mean; auto: what promises the least error

    def __call__(self, cxx: Matrix, cyx: Tensor, samples: Samples | None = None) -> Solution:
        """Solution of W (Cxx + ridge mean(diag Cxx) I) = Cyx; cxx (in, in) and cyx (out, in), float64.

        Inputs of variance zero get weight zero (the minimum norm), so a dead pixel does not spoil the factorisation.
        samples: for `ridge: auto`, which is no ridge where there is plenty of them. Raises ValueError without.
        """
        whole = dense(cxx)
        if self.ridge == "auto" and _known(samples).count <= PLENTY * (len(whole) + 1):
            return EigenDecomposition()(whole, cyx, samples)
        ridge = 0.0 if self.ridge == "auto" else self.ridge
        shift = ridge * float(whole.diagonal().mean())
        ridged = whole + shift * torch.eye(len(whole), dtype=whole.dtype, device=whole.device) if shift else whole
        alive = varying(ridged.diagonal())
        block = ridged if bool(alive.all()) else ridged[alive][:, alive]
        factor, failed = torch.linalg.cholesky_ex(block)
        if block.numel() == 0 or bool(failed) or _nearly_singular(block, factor):
            return EigenDecomposition(ridge=ridge)(whole, cyx)
        weight = torch.zeros_like(cyx)
        weight[:, alive] = torch.cholesky_solve(cyx[:, alive].T, factor).T
        count = int(alive.sum())
        lost = shift * float(torch.cholesky_inverse(factor).trace()) if shift else 0.0
        return Solution(weight, count, _residual(ridged, cyx, weight), 1, True, "cholesky", count - lost, ridge)


@option
class EigenDecomposition:
    """Minimum-norm solution on the eigenvectors of Cxx whose eigenvalue exceeds a stated cut."""

    kind: Literal["eigh"] = "eigh"
    ridge: Ridge = "auto"  # added to the diagonal, in units of its mean; auto: what promises the least error
    cut: Annotated[float, Gt(0)] = CUT  # share of the largest eigenvalue

    def __call__(self, cxx: Matrix, cyx: Tensor, samples: Samples | None = None) -> Solution:
        """W = Cyx V diag(1/(s + lambda)) V^T over the eigenpairs (s, V) with s > cut max(s).

        cxx: (in, in). cyx: (out, in). lambda: ridge mean(diag Cxx). samples: for `ridge: auto`. Raises ValueError
        without them.
        """
        cxx = dense(cxx)
        values, basis = eigenpairs(cxx, self.cut, len(cxx) if samples is None else samples.count)
        along = cyx @ basis
        mean = float(cxx.diagonal().mean())
        shift = best_shift(values, along, _known(samples), mean) if self.ridge == "auto" else self.ridge * mean
        weight = (along / (values + shift)) @ basis.T
        residual = float((weight @ cxx + shift * weight - cyx).norm()) / _scale(cyx)
        freedom, ridge = float((values / (values + shift)).sum()), shift / mean if shift else 0.0
        return Solution(weight, len(values), residual, 1, True, "eigh", freedom, ridge)


@option
class ConjugateGradient:
    """Conjugate gradients with a diagonal preconditioner: products with Cxx only, so it may stay on disk."""

    kind: Literal["cg"] = "cg"
    ridge: Annotated[float, Ge(0)] = 0.0  # added to the diagonal, in units of its mean
    tol: Annotated[float, Gt(0)] = 1e-8  # on the residual of every output, relative to its right-hand side
    max_iter: Annotated[int, Gt(0)] | None = None  # default 10 x in

    def __call__(self, cxx: Matrix, cyx: Tensor, samples: Samples | None = None) -> Solution:
        """Solves all outputs at once, each with step lengths of its own; cxx (in, in), cyx (out, in).

        Stops when max_i ||r_i|| / ||b_i|| <= tol, which is the certificate; a row that has arrived stands still.
        Started from zero, so that inputs of variance zero keep weight zero. With a ridge, random signs z are solved
        for beside the outputs: z^T Cxx (Cxx + lambda I)^-1 z has the degrees of freedom as its mean (Hutchinson 1989).
        Source: Hestenes and Stiefel 1952.
        """
        diagonal = cxx.diagonal()
        shift = self.ridge * diagonal.mean()
        probes = cyx.new_zeros(0, len(diagonal))
        if self.ridge:
            draws = torch.Generator().manual_seed(0)
            probes = torch.randint(2, (PROBES, len(diagonal)), generator=draws).to(cyx) * 2 - 1
        sides = torch.cat([cyx, (cxx @ probes.T).T])
        inverse = torch.where(varying(diagonal), 1 / (diagonal + shift), 0.0)
        bound = self.tol * sides.norm(dim=1)
        weight, residual = torch.zeros_like(sides), sides.clone()
        direction = residual * inverse
        slope = (residual * direction).sum(1)
        limit = self.max_iter or 10 * sides.shape[1]
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
        weight, answers = weight.split([len(cyx), len(probes)])
        freedom = float((answers * probes).sum(1).mean()) if self.ridge else float(len(diagonal))
        remains = float(residual[: len(cyx)].norm()) / _scale(cyx)
        return Solution(weight, None, remains, n_iter, arrived, "cg", freedom, self.ridge)


def eigenpairs(cxx: Tensor, cut: float, rank: int) -> tuple[Tensor, Tensor]:
    """The eigenvalues above `cut` of the largest, ascending, and their vectors (in, found). rank: of Cxx at most.

    Of few samples Cxx = G G^T with a thin G, from Cholesky's factorisation with pivots, and the eigenvectors are those
    of G^T G times G: in rank^2 + rank^3 operations in place of about 10 in^3.
    """
    if cxx.device.type == "cpu" and rank < len(cxx) / 2:
        from scipy.linalg.lapack import dpstrf  # a tenth of a second, which other verbs should not wait for

        packed, order, found, _ = dpstrf(cxx.numpy(), lower=True)
        thin = torch.empty(len(cxx), found, dtype=cxx.dtype)
        thin[torch.from_numpy(order).long() - 1] = torch.from_numpy(packed)[:, :found].tril()
        values, inner = torch.linalg.eigh(thin.T @ thin)
        kept = values > cut * values[-1:].clamp(min=0)
        return values[kept], thin @ (inner[:, kept] / values[kept].sqrt())
    values, vectors = torch.linalg.eigh(cxx)
    kept = values > cut * values[-1:].clamp(min=0)
    return values[kept], vectors[:, kept]


def best_shift(values: Tensor, along: Tensor, samples: Samples, unit: float) -> float:
    """The lambda whose expected error on new samples is the least. unit: the mean diagonal of Cxx; see the next two."""
    if values.numel() == 0 or unit <= 0:
        return 0.0
    shifts = possible_shifts(values, unit)
    return float(shifts[expected_errors(values, along, samples, shifts).argmin()])


def possible_shifts(like: Tensor, unit: float) -> Tensor:
    """(142,) lambdas: 0, and 1e-12 to 100 times the unit."""
    exponents = torch.linspace(-12, 2, 141, dtype=like.dtype, device=like.device)
    return torch.cat([like.new_zeros(1), unit * 10**exponents])


def expected_errors(values: Tensor, along: Tensor, samples: Samples, shifts: Tensor) -> Tensor:
    """(n,) error on new samples with each of these lambdas, (n,), by generalised cross-validation.

    values: (rank,) eigenvalues s of Cxx. along: (out, rank) Cyx V = c. It is E / (1 - (d + 1) / n)^2, where
    d = sum_j s_j / (s_j + lambda) are the degrees of freedom and
    E = tr Cyy - sum_j |c_j|^2 / s_j + sum_j |c_j|^2 / s_j (lambda / (s_j + lambda))^2 is the error on the samples; and
    infinity without one sample more than d + 1 at least, since E is 0 then and says nothing.
    Source: Golub, Heath and Wahba 1979; d + 1, since the mean is fitted, too.
    """
    lost = shifts[:, None] / (values + shifts[:, None])
    explained = along.square().sum(0) / values
    error = max(samples.variance - float(explained.sum()), 0.0) + (explained * lost.square()).sum(1)
    unseen = (samples.count - 1 - len(values) + lost.sum(1)) / samples.count
    return torch.where(unseen * samples.count >= 1, error / unseen.square(), torch.inf)


Solver = Cholesky | EigenDecomposition | ConjugateGradient


def _known(samples: Samples | None) -> Samples:
    if samples is None:
        raise ValueError("ridge: auto is chosen by the number of samples and the variance of the target; give them")
    return samples


def varying(diagonal: Tensor) -> Tensor:
    """Inputs that vary by more than rounding: a tap that sees only padding may not come out as an exact zero."""
    return diagonal > CUT * diagonal.max()


def _nearly_singular(matrix: Tensor, factor: Tensor) -> bool:
    """Whether the least eigenvalue is no more than the largest one's rounding. factor: of Cholesky.

    Pivots do not tell: where outputs of a LayerNorm add up to nothing, weighted by 1 / gamma, the last pivot is the
    least eigenvalue divided by the share that the last input has in that sum. So both ends of the spectrum are found by
    iterations on a few vectors, which a gap as wide as rounding leaves needs few of.
    """
    pivots = factor.diagonal().square()
    if bool(pivots.min() <= CUT * pivots.max()):
        return True
    start = torch.randn(len(matrix), _VECTORS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low = high = start.to(matrix.device, matrix.dtype)
    for _ in range(_ITERATIONS):
        low = torch.cholesky_solve(low / low.norm(dim=0), factor)
        high = matrix @ (high / high.norm(dim=0))
    return bool(1 / low.norm(dim=0).max() <= CUT * high.norm(dim=0).max())


def _residual(cxx: Tensor, cyx: Tensor, weight: Tensor) -> float:
    return float((weight @ cxx - cyx).norm()) / _scale(cyx)


def _scale(cyx: Tensor) -> float:
    return max(float(cyx.norm()), torch.finfo(cyx.dtype).tiny)


SOLVERS: dict[str, type[Cholesky] | type[EigenDecomposition] | type[ConjugateGradient]] = {
    "cholesky": Cholesky,
    "eigh": EigenDecomposition,
    "cg": ConjugateGradient,
}
