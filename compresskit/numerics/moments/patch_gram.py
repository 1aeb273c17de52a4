"""Sums of patch patch^T and y patch^T over all positions of a convolution: two algorithms with equal results."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, prod

import torch
from torch import Tensor

from compresskit.numerics.moments.machine import Machine, machine_of
from compresskit.numerics.moments.patches import Patches, windows
from compresskit.numerics.moments.toeplitz import Pair, Phases, add_correlations, pair


def add_patches(xx: Tensor, yx: Tensor, x: Tensor, y: Tensor, patches: Patches) -> None:
    """Adds sum patch patch^T to the upper triangle of xx (G, F, F), and sum y patch^T to yx (G, O/G, F).

    x: (N, C, *size). y: (N, O, *positions). Takes the cheaper of `add_direct` and `add_shifted` by the number of
    multiply-adds, with the costs of the device's `Machine`. With P positions, M points (H W of them) in the periodic
    grid of the correlations, D distinct shifts between two taps, K taps:
        direct    N P G F (F/2 + O/G + move)
        shifted   transform small N (C + O) M (H + W + 2 move), assembly small move stride G F^2,
                  products small M C/G (C (2 N + D + move) + O (2 N + K + move)), direct and call for each piece of
                  the ring. C and K are those of `Phases`.
    """
    x, y, patches = _cropped(*_planar(x, y, patches))
    _cheapest(patches, tuple(x.shape), y.shape[1], machine_of(x.device))(xx, yx, x, y, patches)


def add_direct(xx: Tensor, yx: Tensor, x: Tensor, y: Tensor, patches: Patches) -> None:
    """As `add_patches`, by unfolding the patches piece by piece. 2-D."""
    for images, rows, u in _unfolded(x, patches, _budget(xx)):
        u = u.flatten(1, -2)
        target = y[images, :, rows].to(torch.float64).transpose(0, 1).reshape(len(xx), -1, u.shape[-1])
        _add_gram(xx, u)
        yx.baddbmm_(target, u.mT)
        del u, target  # before the next ones are made


def add_shifted(xx: Tensor, yx: Tensor, x: Tensor, y: Tensor, patches: Patches) -> None:
    """As `add_patches`, from correlations of maps at the shifts between two taps. 2-D, padding not negative.

    Summed over every position at which a tap meets data, patch patch^T depends on two taps a, b only through the
    shift b - a: it is block Toeplitz. What lies outside the convolution's own positions, a ring about the border,
    is unfolded and taken off again. A stride above 1 asks for dilation 1.
    """
    add_correlations(xx, yx, x, y, patches, _budget(xx))
    for piece, taps in ring(patches, pair(x.shape[2:])):
        _subtract(xx, x, piece, taps, patches)


def add_rows(xx: Tensor, yx: Tensor, x: Tensor, y: Tensor) -> None:
    """Adds sum x x^T to the upper triangle of xx (1, F, F), sum y x^T to yx (1, O, F), for rows x (n, F), y (n, O)."""
    step = max(1, _budget(xx) // (8 * (x.shape[1] + y.shape[1])))
    for rows, targets in zip(torch.split(x, step), torch.split(y, step), strict=True):
        u = rows.to(torch.float64).T[None]
        _add_gram(xx, u)
        yx.baddbmm_(targets.to(torch.float64).T[None], u.mT)


def ring(patches: Patches, size: Pair) -> Iterator[tuple[Patches, list[slice]]]:
    """Pieces of the ring: windows at one row (or column) outside, and the taps of the kernel that meet data there.

    Rows are taken at their full length, columns inside the rows of the convolution only.
    """
    inside = patches.positions(size)
    for i, length in enumerate(size):
        s, d, (before, _) = patches.stride[i], patches.dilation[i], patches.padding[i]
        first, last = _touching(patches, size, i)
        for position in (p for p in range(first, last + 1) if not 0 <= p < inside[i]):
            start = s * position - before
            low, high = max(0, -(start // d)), min(patches.kernel[i], (length - 1 - start) // d + 1)
            if low < high:
                taps = [slice(0, n) for n in patches.kernel]
                taps[i] = slice(low, high)
                begin, end = start + low * d, start + (high - 1) * d + 1
                yield _narrowed(patches, size, i, high - low, (-begin, end - length)), taps


def _touching(patches: Patches, size: Pair, i: int) -> Pair:
    """First and last position along dimension i, inside or outside, whose span overlaps the data."""
    before, s = patches.padding[i][0], patches.stride[i]
    return -(((patches.kernel[i] - 1) * patches.dilation[i] - before) // s), (size[i] - 1 + before) // s


def _narrowed(patches: Patches, size: Pair, i: int, taps: int, padding: Pair) -> Patches:
    """`patches` with so many taps and that padding along dimension i, and every position that meets data behind it."""
    kernel, paddings = list(patches.kernel), list(patches.padding)
    kernel[i], paddings[i] = taps, padding
    for j in range(i + 1, len(size)):
        first, last = _touching(patches, size, j)
        s, span, before = patches.stride[j], (patches.kernel[j] - 1) * patches.dilation[j] + 1, patches.padding[j][0]
        paddings[j] = (before - s * first, s * last - before + span - size[j])
    return replace(patches, kernel=tuple(kernel), padding=tuple(paddings))


def _add_gram(xx: Tensor, u: Tensor) -> None:
    """Adds u u^T, u (G, F, n), to the upper triangle of xx (G, F, F)."""
    tile = machine_of(u.device).tile
    for start in range(0, u.shape[1], tile):
        panel = slice(start, start + tile)
        xx[:, panel, start:].baddbmm_(u[:, panel], u[:, start:].mT)


def _subtract(xx: Tensor, x: Tensor, piece: Patches, taps: list[slice], patches: Patches) -> None:
    """Takes sum patch patch^T of a piece of the ring off the rows and columns of its taps."""
    groups, channels = len(xx), x.shape[1] // len(xx)
    block = xx.view(groups, channels, *patches.kernel, channels, *patches.kernel)
    step = max(1, machine_of(x.device).tile // prod(piece.kernel))
    for _, _, u in _unfolded(x, piece, _budget(xx)):
        for start in range(0, channels, step):
            panel = u[:, start : start + step].flatten(1, -2) @ u[:, start:].flatten(1, -2).mT
            target = block[:, start : start + step, taps[0], taps[1], start:, taps[0], taps[1]]
            target -= panel.view(target.shape)
        del u


def _unfolded(x: Tensor, patches: Patches, budget: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Images, rows of positions, and their patches (G, C/G, *kernel, n) in float64.

    The patches take a third of the budget; the rest is for the padded images, targets and panels of the products.
    """
    budget //= 3
    height, width = patches.positions(x.shape[2:])
    row = 8 * x.shape[1] * prod(patches.kernel) * width
    images, rows = max(1, budget // (row * height)), max(1, budget // row)
    for first in range(0, len(x), images):
        part = slice(first, first + images)
        view = windows(x[part], patches, torch.float64).movedim(0, 3)
        for start in range(0, height, rows):
            piece = slice(start, start + rows)
            u = view[..., piece, :]
            yield part, piece, u.reshape(patches.groups, -1, *patches.kernel, prod(u.shape[3:]))


def _budget(xx: Tensor) -> int:
    """Bytes that temporaries may take: two fifths of the sums, so that small ones beside them still fit in a half."""
    return max(machine_of(xx.device).budget, xx.numel() * xx.element_size() * 2 // 5)


def _planar(x: Tensor, y: Tensor, patches: Patches) -> tuple[Tensor, Tensor, Patches]:
    """A 1-D convolution as a 2-D one of width 1."""
    if len(patches.kernel) == 2:
        return x, y, patches
    kernel, stride, dilation = (*patches.kernel, 1), (*patches.stride, 1), (*patches.dilation, 1)
    flat = Patches(kernel, stride, dilation, (*patches.padding, (0, 0)), patches.groups)
    return x[..., None], y[..., None], flat


def _cropped(x: Tensor, y: Tensor, patches: Patches) -> tuple[Tensor, Tensor, Patches]:
    """The same windows with the negative part of the padding already cut off x."""
    (top, bottom), (left, right) = ((max(0, -before), max(0, -after)) for before, after in patches.padding)
    padding = tuple((max(0, before), max(0, after)) for before, after in patches.padding)
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right], y, replace(patches, padding=padding)


def _cheapest(patches: Patches, shape: tuple[int, ...], outputs: int, machine: Machine) -> Callable[..., None]:
    direct, shifted = (cost(patches, shape, outputs, machine) for cost in (_direct_cost, _shifted_cost))
    return add_direct if direct <= shifted else add_shifted


def _direct_cost(patches: Patches, shape: tuple[int, ...], outputs: int, machine: Machine) -> float:
    features, positions = shape[1] // patches.groups * prod(patches.kernel), prod(patches.positions(shape[2:]))
    gram = (features + min(features, machine.tile)) / 2 + outputs / patches.groups
    return shape[0] * positions * patches.groups * features * (gram + machine.move)


def _shifted_cost(patches: Patches, shape: tuple[int, ...], outputs: int, machine: Machine) -> float:
    if any(s > 1 and d > 1 for s, d in zip(patches.stride, patches.dilation, strict=True)):
        return inf
    n, channels, *_ = shape
    size, move = pair(shape[2:]), machine.move
    phases = Phases(patches, size)
    wide, groups, points = channels * prod(patches.stride), patches.groups, prod(phases.grid)
    transform = n * (wide + outputs) * points * (sum(phases.grid) + 2 * move)
    shifts = prod(2 * k - 1 for k in phases.taps) / 2
    products = wide * (2 * n + shifts + move) + outputs * (2 * n + prod(phases.taps) + move)
    assembly = move * patches.stride[1] * groups * (channels // groups * prod(patches.kernel)) ** 2
    border = sum(machine.call + _direct_cost(piece, shape, 0, machine) for piece, _ in ring(patches, size))
    return machine.small * (transform + points * wide / groups * products + assembly) + border
