"""Cross-correlations of maps at many shifts at once, by the discrete Fourier transform.

The transform is written as matrix products with waves: at the sizes of feature maps they are faster than an FFT, ask
for no special lengths, and leave the result in the order in which the products over the images want it.
"""

from math import pi, prod

import torch
from torch import Tensor

from compresskit.numerics.moments.machine import machine_of

Grid = tuple[int, int]


def spectrum(x: Tensor, grid: Grid) -> Tensor:
    """Fourier transform (grid[0] // 2 + 1, grid[1], 2, N, channels) of real maps x (N, channels, H, W), in float64.

    Real and imaginary parts of sum_q x[q] exp(-2 pi i f.q / grid), x zero beyond H, W: at the first half of the
    frequencies along H, to which the others are conjugate.
    """
    n, channels, height, width = x.shape
    z = x.permute(2, 3, 0, 1).to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    cosine, sine = _waves(torch.arange(grid[0] // 2 + 1, device=x.device), height, grid[0])
    z = torch.stack((cosine, -sine), dim=1).flatten(0, 1) @ z.view(height, -1)
    cosine, sine = _waves(torch.arange(grid[1], device=x.device), width, grid[1])
    # (cos - i sin)(re + i im): rows are (frequency, part), columns (part, pixel)
    wave = torch.stack((torch.cat((cosine, sine), 1), torch.cat((-sine, cosine), 1)), dim=1).flatten(0, 1)
    z = z.view(grid[0] // 2 + 1, 2 * width, -1)
    return wave.expand(len(z), -1, -1).bmm(z).view(-1, grid[1], 2, n, channels)


def add_correlation(sums: Tensor, x: Tensor, y: Tensor, grid: Grid, shifts: tuple[Tensor, Tensor]) -> None:
    """Adds sum_{n,q} x[n, c, q] y[n, c', q + (i, j)] for i, j in shifts to sums (len i, len j, G, X/G, Y/G).

    x, y: spectra on `grid` of X and Y channels, in G groups. shifts: pixels along H and along W, periodic.
    Formula: 1 / prod(grid) sum_f S_f exp(2 pi i f.shift / grid) with S_f = sum_n conj(x_f) y_f^T.
    """
    groups, left, right = sums.shape[2:]
    along_height, along_width = _inverse_waves(grid, shifts)
    row = 3 * 8 * grid[1] * groups * right  # bytes of S and its sums for one channel of x at one frequency along H
    cache = machine_of(x.device).cache
    channels, step = min(left, max(1, cache // row)), max(1, cache // (row * left))
    for start in range(0, len(x), step):
        conjugate, straight = _grouped(x[start : start + step], groups).mT, _grouped(y[start : start + step], groups)
        re, im = y[start : start + step].unbind(2)
        turned = _grouped(torch.stack((im, -re), dim=2), groups)
        wave = along_height[:, 2 * start : 2 * (start + step)]
        for first in range(0, left, channels):
            rows = conjugate[..., first : first + channels, :]
            part = rows @ straight
            lines = along_width[0].expand(len(part), -1, -1).bmm(part.flatten(2))
            torch.matmul(rows, turned, out=part)
            lines.baddbmm_(along_width[1].expand(len(part), -1, -1), part.flatten(2))
            block = wave @ lines.view(2 * len(part), -1)
            sums[:, :, :, first : first + channels] += block.view(*sums.shape[:3], -1, right)


def _inverse_waves(grid: Grid, shifts: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Matrices that lead back to the shifts: real parts (i, 2 f) along H, (2 j, g) for each part of S along W."""
    cosine, sine = _waves(shifts[1], grid[1], grid[1])
    along_width = torch.cat((cosine, sine)), torch.cat((-sine, cosine))
    half = grid[0] // 2 + 1
    cosine, sine = _waves(shifts[0], half, grid[0])
    frequency = torch.arange(half, device=cosine.device)
    # frequencies left out are conjugate to the ones kept, but for the zeroth and, on an even grid, the middle one
    weight = torch.where((frequency == 0) | (2 * frequency == grid[0]), 1.0, 2.0).to(torch.float64) / prod(grid)
    return torch.stack((cosine * weight, -sine * weight), dim=2).flatten(1), along_width


def _grouped(z: Tensor, groups: int) -> Tensor:
    """(f, g, groups, 2 N, channels / G) of a spectrum (f, g, 2, N, channels)."""
    f, g, parts, n, channels = z.shape
    return z.reshape(f, g, parts * n, groups, channels // groups).transpose(2, 3)


def _waves(first: Tensor, length: int, period: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (len(first), length) of 2 pi f q / period, q < length; reduced in integers, exact for any q."""
    turns = torch.outer(first, torch.arange(length, device=first.device)) % period
    angle = turns.to(torch.float64) * (2 * pi / period)
    return angle.cos(), angle.sin()
