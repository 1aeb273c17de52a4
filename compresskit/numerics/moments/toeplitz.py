"""Second moments of patches over all positions at which a tap meets data: block Toeplitz, from a few correlations."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from compresskit.numerics.moments.correlation import add_correlation, spectrum
from compresskit.numerics.moments.machine import machine_of
from compresskit.numerics.moments.patches import Patches, pad

Pair = tuple[int, int]


@dataclass(frozen=True)
class Phases:
    """A 2-D convolution of stride s as one of stride 1 on the phases of its map, taken as channels.

    Along each dimension, tap a lies in phase a % s at tap a // s; where s > 1, dilation must be 1. `patches` must not
    crop. The window of position 0 begins padding // s pixels of a phase ahead of the phase's first.
    """

    patches: Patches
    map_size: Pair

    @property
    def taps(self) -> Pair:
        return pair(-(-k // s) for k, s in zip(self.patches.kernel, self.patches.stride, strict=True))

    @property
    def lead(self) -> Pair:
        return pair(before // s for (before, _), s in zip(self.patches.padding, self.patches.stride, strict=True))

    @property
    def size(self) -> Pair:
        sizes = zip(self.map_size, self.patches.padding, self.patches.stride, strict=True)
        return pair(-(-(length + before % s) // s) for length, (before, _), s in sizes)

    @property
    def grid(self) -> Pair:
        """Period at which no shift between two taps, and no window, wraps around onto data."""
        reach = zip(self.size, self.taps, self.patches.dilation, strict=True)
        return pair(length + (k - 1) * d for length, k, d in reach)

    def split(self, x: Tensor) -> Tensor:
        """Phases (N, C * prod(stride), *size) of x (N, C, *map_size)."""
        stride = self.patches.stride
        first = [before % s for (before, _), s in zip(self.patches.padding, stride, strict=True)]
        extents = zip(self.size, stride, self.map_size, first, strict=True)
        x = pad(x, [(start, n * s - length - start) for n, s, length, start in extents])
        (height, width), (s, t) = self.size, stride
        return x.reshape(*x.shape[:2], height, s, width, t).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    def meeting(self, positions: tuple[int, ...]) -> tuple[slice, ...]:
        """Those of the convolution's positions whose windows can meet data."""
        bounds = zip(self.lead, self.grid, self.size, positions, strict=True)
        return tuple(slice(max(0, q + n - m), min(out, n + q)) for q, m, n, out in bounds)


def add_correlations(xx: Tensor, yx: Tensor, x: Tensor, y: Tensor, patches: Patches, budget: int) -> None:
    """Adds sum patch patch^T over all positions that meet data to the upper triangle of xx (G, F, F).

    And sum y patch^T to yx (G, O/G, F), for x (N, C, H, W) and y (N, O, *positions), zero beyond them. budget: bytes
    for temporaries.
    """
    phases = Phases(patches, pair(x.shape[2:]))
    grid, meeting = phases.grid, phases.meeting(y.shape[2:])
    height, width = (
        torch.arange(1 - k, k, device=x.device) * d for k, d in zip(phases.taps, patches.dilation, strict=True)
    )
    top, left = (m.start - q for m, q in zip(meeting, phases.lead, strict=True))
    between, reach = (height[height >= 0], width), (height[height >= 0] + top, width[width >= 0] + left)
    groups, wide = patches.groups, x.shape[1] * prod(patches.stride) // patches.groups
    gram = xx.new_zeros(len(between[0]), len(between[1]), groups, wide, wide)
    cross = xx.new_zeros(len(reach[0]), len(reach[1]), groups, y.shape[1] // groups, wide)
    # a spectrum holds two numbers at half the points; the one in the making, as much again
    parts = -(-len(x) * 12 * prod(grid) * (groups * wide + y.shape[1]) // budget)
    step = -(-len(x) // parts)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        source = spectrum(phases.split(x[part]), grid)
        target = spectrum(y[part, :, meeting[0], meeting[1]], grid)
        add_correlation(gram, source, source, grid, between)
        add_correlation(cross, target, source, grid, reach)
        del source, target  # before the next ones are made
    _add_toeplitz(xx, gram, phases)
    _add_cross(yx, cross, phases)


def _add_toeplitz(xx: Tensor, gram: Tensor, phases: Phases) -> None:
    """Adds the correlation at shift b - a to block (tap a, tap b) of xx, on and above the diagonal.

    gram: (i, j, G, C, C) of the shifts with i >= 0; to turn a shift about swaps the two channels.
    """
    (s, t), kernel, groups = phases.patches.stride, phases.patches.kernel, len(xx)
    channels = gram.shape[3] // (s * t)
    block = xx.view(groups, channels, *kernel, channels, *kernel)
    step = max(1, machine_of(xx.device).cache // (3 * 16 * gram[:, :, :, : s * t].numel()))
    for first in range(0, channels, step):
        rows, columns = slice(first * s * t, (first + step) * s * t), slice(first * s * t, None)
        turned = gram[1:, :, :, columns, rows].flip(0, 1).mT
        shifts = torch.cat((turned, gram[:, :, :, rows, columns])).permute(2, 3, 4, 0, 1).contiguous()
        shifts = shifts.view(groups, -1, s, t, channels - first, s, t, *shifts.shape[3:])
        _spread(block[:, first : first + step, :, :, first:], shifts, phases)


def _spread(block: Tensor, shifts: Tensor, phases: Phases) -> None:
    """Adds shifts (G, c, *stride, c', *stride, i, j), zero in the middle, to block (G, c, *kernel, c', *kernel)."""
    (s, t), (height, width) = phases.patches.stride, phases.patches.kernel
    for a, b in product(range(height), range(width)):
        i, j = phases.taps[0] - 1 - a // s, phases.taps[1] - 1 - b // t
        for p, q in product(range(min(s, height)), range(min(t, width))):
            target = block[:, :, a, b, :, p::s, q::t]
            rows, columns = slice(i, i + target.shape[3]), slice(j, j + target.shape[4])
            target += shifts[:, :, a % s, b % t, :, p, q, rows, columns]


def _add_cross(yx: Tensor, cross: Tensor, phases: Phases) -> None:
    """Adds correlations (i, j, G, O/G, C/G * phases) at the taps to yx (G, O/G, F)."""
    (s, t), kernel = phases.patches.stride, phases.patches.kernel
    cross = cross.view(*cross.shape[:4], -1, s, t).permute(2, 3, 4, 0, 5, 1, 6).flatten(5, 6).flatten(3, 4)
    yx += cross[..., : kernel[0], : kernel[1]].reshape(yx.shape)


def pair(values: Iterable[int]) -> Pair:
    """Two values as the tuple that the type checker wants."""
    first, second = values
    return first, second
