"""The layer that best stands in for several: least squares of their output on their input, from moments alone."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compresskit.numerics.least_squares.solvers import Samples, Solution, Solver
from compresskit.numerics.moments.matrix import Matrix, dense
from compresskit.numerics.moments.moments import Moments

Channels = Literal["joint", "independent"]


@dataclass(frozen=True)
class Fusion:
    """A fused layer y ~ W x + b and its error.

    weight: (out, in of a group), float64. bias: (out,).
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


def fuse(moments: Moments, solver: Solver, channels: Channels = "joint", taps: int = 1) -> Fusion:
    """Fusion of least mean-square error: W = Cyx Cxx^-1, b = E[y] - W E[x], group by group.

    channels: `joint` solves for all input channels together; `independent` solves each channel's `taps` features on
    their own, as if channels were uncorrelated, which is never better.
    The error is tr(Cyy) - 2 tr(W Cxy) + tr(W Cxx W^T), which is Corollary 1 where W is optimal and right for any W.
    The expected error divides it, group by group, by (1 - (d + 1) / n)^2 (generalised cross-validation, Golub, Heath
    and Wahba 1979) with d degrees of freedom, since least squares fits part of the noise of the samples it sees; `inf`
    where there is not one sample more than d + 1. Neighbouring positions of a convolution are counted as samples of
    their own, which they are not quite.

    Raises ValueError if the moments are not finite.
    Source: FuseInit, Theorems 1 and 2, Corollary 1. Ours takes one bias for each output channel, the mean over
    positions, where (17) varies with the position; and solves channels jointly unless asked for (16).
    """
    if not moments.finite:
        raise ValueError("the moments are not finite")
    weights, solutions, error, expected = [], list[Solution](), 0.0, 0.0
    spread = moments.cyy.view(len(moments.cyx), -1).sum(1)
    for group, cyx in enumerate(moments.cyx):
        cxx, samples = moments.cxx[group], Samples(moments.count, float(spread[group]))
        if channels == "independent":
            found = _by_channel(cxx, cyx, solver, taps, samples)
        else:
            found = [solver(cxx, cyx, samples)]
        weight = torch.cat([solution.weight for solution in found], dim=1)
        missed = samples.variance + float(((cxx @ weight.T).T * weight).sum() - 2 * (weight * cyx).sum())
        left = moments.count - 1 - sum(solution.freedom for solution in found)
        error += max(missed, 0.0)
        expected += max(missed, 0.0) * (moments.count / left) ** 2 if left > 0.999 else float("inf")  # rounded
        weights.append(weight)
        solutions += found
    weight = torch.cat(weights)
    mean_x = moments.mean_x.repeat_interleave(len(weight) // len(moments.mean_x), dim=0)
    bias = moments.mean_y - (weight * mean_x).sum(1)
    return Fusion(weight, bias, moments.count, moments.variance, error, expected, tuple(solutions))


def _by_channel(cxx: Matrix, cyx: Tensor, solver: Solver, taps: int, samples: Samples) -> list[Solution]:
    whole = dense(cxx)
    blocks = [slice(start, start + taps) for start in range(0, len(whole), taps)]
    return [solver(whole[block, block], cyx[:, block], samples) for block in blocks]
