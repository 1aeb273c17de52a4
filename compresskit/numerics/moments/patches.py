"""Geometry of the windows that a convolution reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """Windows of a 1-D or 2-D convolution, by the length of the tuples.

    padding: (before, after) for each spatial dimension, in pixels of zeros; negative crops. groups: as in nn.Conv2d.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1

    def __post_init__(self) -> None:
        lengths = {len(self.kernel), len(self.stride), len(self.dilation), len(self.padding)}
        if lengths not in ({1}, {2}):
            raise ValueError(f"kernel, stride, dilation, padding have lengths {sorted(lengths)}; give all 1 or all 2")
        if min(*self.kernel, *self.stride, *self.dilation, self.groups) < 1:
            raise ValueError(f"kernel, stride, dilation and groups must be at least 1: {self}")

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """Output positions along each dimension of a map of `size`. Raises ValueError where no window fits."""
        spans = (d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        padded = (length + before + after for length, (before, after) in zip(size, self.padding, strict=True))
        counts = tuple((p - span) // s + 1 for p, span, s in zip(padded, spans, self.stride, strict=True))
        if min(counts) < 1:
            raise ValueError(f"no window of {self} fits a map of size {tuple(size)}; enlarge the map or its padding")
        return counts


def pad(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """x with its last len(padding) dimensions padded by zeros (before, after); negative crops."""
    return F.pad(x, [amount for pair in reversed(padding) for amount in pair])


def windows(x: Tensor, patches: Patches, dtype: torch.dtype | None = None) -> Tensor:
    """View (N, C, *kernel, *positions) of x (N, C, *size), padded and then cast to dtype if given.

    At tap a and position p lies the pixel p * stride + a * dilation of the padded map.
    """
    positions = patches.positions(x.shape[2:])
    padded = pad(x, patches.padding).to(dtype or x.dtype).contiguous()
    steps = padded.stride()[2:]
    taps = [step * d for step, d in zip(steps, patches.dilation, strict=True)]
    moves = [step * s for step, s in zip(steps, patches.stride, strict=True)]
    return padded.as_strided((*x.shape[:2], *patches.kernel, *positions), (*padded.stride()[:2], *taps, *moves))


def unfold(x: Tensor, patches: Patches) -> Tensor:
    """Patches (N, groups, C / groups * prod(kernel), positions) of x (N, C, *size), positions flattened.

    Features are ordered channel-major, then taps: as weight.reshape(out, -1) of a convolution.
    """
    positions = patches.positions(x.shape[2:])
    return windows(x, patches).reshape(len(x), patches.groups, -1, prod(positions))
