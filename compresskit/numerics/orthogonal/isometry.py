"""Singular values of Jacobians: by decomposition or by products alone, and whether two sets of them differ."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

_NO_SHARE = 1e-25  # weight of a node, below which it is rounding, squared
_SAME = 1e-6  # in units of the largest value: what float32 makes of the weights of an orthogonal layer stays below it
SMALL = 512  # shorter side of a matrix, up to which several threads wait for each other more than they work


@dataclass(frozen=True)
class SingularValues:
    """Of several matrices of one shape; their figures are over all values of all of them.

    values: (rows, k) float64, ascending; a row for each matrix, and all that it has: k = min(m, n). weights: None; or
    (rows, k), where rows are estimates of a density, a row for each starting vector, whose weights sum to 1.
    """

    values: Tensor
    weights: Tensor | None = None

    @property
    def estimated(self) -> bool:
        return self.weights is not None

    @property
    def mean(self) -> float:
        return self._average(self.values)

    @property
    def variance(self) -> float:
        """Mean squared distance from the mean."""
        return self._average((self.values - self.mean).square())

    @property
    def smallest(self) -> float:
        """Of an estimate: the smallest Ritz value, which is no smaller than the smallest singular value."""
        return float(self._present().min())

    @property
    def largest(self) -> float:
        """Of an estimate: the largest Ritz value, which is no larger than the largest singular value."""
        return float(self._present().max())

    def spectrum(self) -> Tensor:
        """(k,) mean over the matrices of their sorted values; of no use for an estimate."""
        return self.values.mean(0)

    def _average(self, values: Tensor) -> float:
        return float(values.mean() if self.weights is None else (self.weights * values).sum(1).mean())

    def _present(self) -> Tensor:
        return self.values if self.weights is None else self.values[self.weights > _NO_SHARE]


def decomposed(matrices: Tensor) -> SingularValues:
    """Singular values of matrices (count, m, n). NaN for all of them where an entry of any is not finite."""
    if not matrices.isfinite().all():
        return SingularValues(matrices.new_full((len(matrices), min(matrices.shape[1:])), math.nan))
    threads = 1 if min(matrices.shape[1:]) <= SMALL else None
    with threadpool_limits(threads):
        return SingularValues(torch.linalg.svdvals(matrices).flip(-1))


def quadrature(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> SingularValues:
    """Density of the singular values of J by stochastic Lanczos quadrature, from products with J J^T (or J^T J) alone.

    With T the tridiagonal matrix of Lanczos from v, theta_i and q_i its eigenvalues and eigenvectors, the density of
    sigma is estimated by sum_i q_i[0]^2 delta(sigma - sqrt(theta_i)), so that for any f, in the mean over random v,
    sum_i q_i[0]^2 f(sqrt(theta_i)) = 1/k sum_j f(sigma_j), exact for polynomials in sigma^2 of degree 2 steps - 1.

    apply: (rows, k) to (rows, k), each row by its own symmetric positive operator, so that several matrices, and
    several vectors for each, go through at once. start: (rows, k) random, of independent entries with mean 0 and equal
    variances. Vectors are made orthogonal to all earlier ones, twice: without that, values come up again and again.
    NaN where a product is not finite.
    Source: Ubaru, Chen and Saad 2017.
    """
    steps = min(steps, start.shape[1])
    vector = start / start.norm(dim=1, keepdim=True)
    basis, diagonal, beside = [vector], [], []
    tiny = torch.finfo(start.dtype).tiny
    for step in range(steps):
        product = apply(vector)
        diagonal.append((vector * product).sum(1))
        if step == steps - 1:
            break
        earlier = torch.stack(basis, 1)  # (rows, step + 1, k)
        for _ in range(2):
            product = product - torch.einsum("rsk,rs->rk", earlier, torch.einsum("rsk,rk->rs", earlier, product))
        length = product.norm(dim=1)
        vector = product / length[:, None].clamp_min(tiny)  # where nothing is left: rounding, which gets no weight
        basis.append(vector)
        beside.append(length)
    return _nodes(torch.stack(diagonal, 1), torch.stack(beside, 1) if beside else start[:, :0])


def _nodes(diagonal: Tensor, beside: Tensor) -> SingularValues:
    """diagonal, beside: (rows, steps) and (rows, steps - 1), of the tridiagonal matrices."""
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    if not matrices.isfinite().all():
        return SingularValues(torch.full_like(diagonal, math.nan), torch.ones_like(diagonal) / diagonal.shape[1])
    nodes, vectors = torch.linalg.eigh(matrices)
    return SingularValues(nodes.clamp_min(0).sqrt(), vectors[:, 0].square())


def pooled(parts: Sequence[SingularValues]) -> SingularValues:
    """All rows of parts that are alike in kind and length."""
    weights = [part.weights for part in parts if part.weights is not None]
    return SingularValues(torch.cat([part.values for part in parts]), torch.cat(weights) if weights else None)


def differ(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov statistic, the largest distance of the distribution functions, and its p-value.

    first, second: (k,) values. Neighbours nearer than 1e-6 of the largest count as equal, for rounding tells them
    apart. NaN where a value is not finite. The test means independent values; singular values repel each other, and
    means of sorted ones over images are smoother still, so p tells apart what differs, but is no probability.
    Source: SAO, Table 6.
    """
    from scipy.stats import ks_2samp  # a third of a second, which only this test should wait for

    both = np.concatenate([first.cpu().numpy(), second.cpu().numpy()])
    if not np.isfinite(both).all():
        return math.nan, math.nan
    order = both.argsort()
    ranks = np.zeros(len(both))  # all that the test looks at
    ranks[order[1:]] = (np.diff(both[order]) > _SAME * np.abs(both).max()).cumsum()
    with warnings.catch_warnings():  # where the exact p-value is lost in rounding, scipy takes the limit's
        warnings.simplefilter("ignore", RuntimeWarning)
        found = ks_2samp(ranks[: len(first)], ranks[len(first) :])
    return float(found.statistic), float(found.pvalue)
