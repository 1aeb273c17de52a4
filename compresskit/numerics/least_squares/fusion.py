"""The layer that best stands in for several: least squares of their output on their input, from moments alone."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compresskit.numerics.least_squares.solvers import Samples, Solution, Solver
from compresskit.numerics.moments.matrix import Matrix, dense
from compresskit.numerics.moments.moments import Moments, MomentSums
from compresskit.numerics.moments.patches import Patches, windows

Channels = Literal["joint", "independent", "document"]


@dataclass(frozen=True)
class MeanMaps:
    """Means over images at each position: of the source x (C, *size), of the target y (O, *positions); float64.

    patches: the windows of x that the fused convolution reads.
    """

    x: Tensor
    y: Tensor
    patches: Patches


@dataclass(frozen=True)
class Fusion:
    """A fused layer y ~ W x + b and its error.

    weight: (out, in of a group), float64. bias: (out,), or (out, *positions) where each position has its own.
    count: samples, or positions, that the moments were taken from.
    variance: tr(Cyy), the variance of the target summed over outputs; of one position for convolutions.
    error: E||y - W x - b||^2 on the samples that the moments were taken from; expected_error: on new samples.
    solutions: one for each group, or for each channel where they are independent.
    """

    weight: Tensor
    bias: Tensor
    count: int
    variance: float
    error: float
    expected_error: float
    solutions: tuple[Solution, ...]

    @property
    def unexplained(self) -> float:
        """Expected error as a share of the variance of the target: 0 is a perfect stand-in, 1 a constant."""
        return 0.0 if self.variance == 0 else self.expected_error / self.variance

    @property
    def rank(self) -> int | None:
        ranks = [solution.rank for solution in self.solutions]
        return None if None in ranks else sum(rank for rank in ranks if rank is not None)

    @property
    def ridge(self) -> float:
        """The largest of its solutions, in units of the mean diagonal."""
        return max(solution.ridge for solution in self.solutions)

    @property
    def converged(self) -> bool:
        return all(solution.converged for solution in self.solutions)


def fuse(
    moments: Moments, solver: Solver, channels: Channels = "joint", taps: int = 1, means: MeanMaps | None = None
) -> Fusion:
    """Fusion of least mean-square error: W = Cyx Cxx^-1, b = E[y] - W E[x], group by group.

    channels: `joint` solves for all input channels together; `independent` solves each channel's `taps` features on
    their own, as if channels were uncorrelated, which is never better. `document`, of a convolution, whose `means` it
    needs, does the latter with moments about the mean of each position, and has a bias for each:
    b_i = E[y_i] - W E[x_i]. Of a linear layer, which has one position, it is `joint` (Theorem 1).
    The error is tr(Cyy) - 2 tr(W Cxy) + tr(W Cxx W^T), which is Corollary 1 where W is optimal and right for any W.
    The expected error divides it, group by group, by (1 - (d + 1) / n)^2 (generalised cross-validation, Golub, Heath
    and Wahba 1979) with d degrees of freedom, since least squares fits part of the noise of the samples it sees; `inf`
    where there is not one sample more than d + 1. Neighbouring positions of a convolution are counted as samples of
    their own, which they are not quite.

    Raises ValueError if the moments are not finite.
    Source: FuseInit, Theorems 1 and 2, Corollary 1. Ours takes one bias for each output channel, the mean over
    positions, where (17) varies with the position; and solves channels jointly. `document` is (13) to (19).
    """
    if not moments.finite:
        raise ValueError("the moments are not finite")
    if channels != "document":
        return _fuse(moments, moments, solver, taps if channels == "independent" else None, None)
    return _fuse(moments, _about(moments, means) if means else moments, solver, taps if means else None, means)


def _fuse(total: Moments, moments: Moments, solver: Solver, taps: int | None, means: MeanMaps | None) -> Fusion:
    """moments: those to solve with. taps: of a channel, where each is solved alone. total: moments about one mean."""
    weights, solutions, error, expected = [], list[Solution](), 0.0, 0.0
    constants = means.y[0].numel() if means else 1  # means that the samples were freed of
    spread = moments.cyy.view(len(moments.cyx), -1).sum(1)
    for group, cyx in enumerate(moments.cyx):
        cxx, samples = moments.cxx[group], Samples(moments.count, float(spread[group]))
        found = [solver(cxx, cyx, samples)] if taps is None else _by_channel(cxx, cyx, solver, taps, samples)
        weight = torch.cat([solution.weight for solution in found], dim=1)
        missed = samples.variance + float(((cxx @ weight.T).T * weight).sum() - 2 * (weight * cyx).sum())
        left = moments.count - constants - sum(solution.freedom for solution in found)
        error += max(missed, 0.0)
        expected += max(missed, 0.0) * (moments.count / left) ** 2 if left > 0.999 else float("inf")  # rounded
        weights.append(weight)
        solutions += found
    weight = torch.cat(weights)
    bias = _bias(weight, total) if means is None else _bias_map(weight, means)
    return Fusion(weight, bias, total.count, total.variance, error, expected, tuple(solutions))


def _bias(weight: Tensor, moments: Moments) -> Tensor:
    mean_x = moments.mean_x.repeat_interleave(len(weight) // len(moments.mean_x), dim=0)
    return moments.mean_y - (weight * mean_x).sum(1)


def _bias_map(weight: Tensor, means: MeanMaps) -> Tensor:
    """(out, *positions): what the means of the target leave to the fused convolution of those of the source."""
    groups, positions = means.patches.groups, means.y.shape[1:]
    read = windows(means.x[None], means.patches).reshape(groups, weight.shape[1], -1)
    return means.y - (weight.view(groups, -1, weight.shape[1]) @ read).view(len(weight), *positions)


def _about(moments: Moments, means: MeanMaps) -> Moments:
    """The moments about each position's own mean: by the law of total covariance, less those of the mean maps."""
    groups, features = moments.mean_x.shape
    sums = MomentSums.zeros(features, len(moments.mean_y), groups, device=means.x.device)
    sums.add(means.x[None], means.y[None], means.patches)
    between = sums.finish()
    cxx = torch.stack([dense(one) for one in moments.cxx]) - torch.stack([dense(one) for one in between.cxx])
    cyy = (moments.cyy - between.cyy).clamp(min=0)
    return Moments(moments.count, moments.mean_x, moments.mean_y, cxx, moments.cyx - between.cyx, cyy)


def _by_channel(cxx: Matrix, cyx: Tensor, solver: Solver, taps: int, samples: Samples) -> list[Solution]:
    whole = dense(cxx)
    blocks = [slice(start, start + taps) for start in range(0, len(whole), taps)]
    return [solver(whole[block, block], cyx[:, block], samples) for block in blocks]
