"""AugMix (Hendrycks et al. 2020) of a whole batch at once: every image has chains of operations of its own."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from compresskit.options import option

LEVELS = 10  # severities, of which the largest gives an operation its full strength
LONGEST = 3  # operations in a chain
_GREYS = 256


@option
class AugMix:
    """Chains of random operations, mixed with random weights and with the image itself; of uint8 images.

    With `width` chains of 1 to 3 operations (or `depth`): m x + (1 - m) sum w_i chain_i(x), w ~ Dirichlet(1),
    m ~ Beta(1, 1). The loss that the paper adds is `consistency` beside it.
    """

    severity: Annotated[float, Gt(0), Le(LEVELS)] = 3  # of 10: strengths are uniform from 0.1 to it
    width: Annotated[int, Gt(0)] = 3  # chains
    depth: Annotated[int, Ge(0), Le(LONGEST)] = 0  # operations in a chain; 0: 1 to 3 of them

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, columns) in [0, 1): for each image all that `__call__` needs."""
        return torch.rand(count, 1 + self.width * (2 + 3 * LONGEST), generator=generator, dtype=torch.float64)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images (N, C, H, W), uint8, mixed by their draws (N, columns)."""
        kept, weights, lengths, steps = self._unpacked(draws)
        shares = -torch.log1p(-weights)  # exponential, so that their shares are Dirichlet
        shares = (1 - kept) * shares / shares.sum(1, keepdim=True)
        orders, counts = _by_operation(steps[..., 0], lengths)
        mixed = _per_image(kept[:, 0], images) * images
        for chain in range(self.width):
            changed = images
            for step in range(LONGEST):
                order, sizes = orders[:, chain, step], counts[chain][step]
                changed = _one_step(changed, steps[:, chain, step, 1:], order, sizes, self.severity)
            mixed = mixed + _per_image(shares[:, chain], images) * changed
        return mixed.round().clamp(0, _GREYS - 1).to(images.dtype)

    def _unpacked(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m (N, 1), weights (N, width), lengths (N, width), and of each step operation, strength and sign."""
        kept, weights, lengths, steps = draws.split([1, self.width, self.width, 3 * LONGEST * self.width], 1)
        lengths = torch.full_like(lengths, self.depth) if self.depth else (LONGEST * lengths).floor() + 1
        return kept, weights, lengths, steps.view(-1, self.width, LONGEST, 3)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(torch.float32).view(-1, *[1] * (images.ndim - 1))


def _by_operation(draws: Tensor, lengths: Tensor) -> tuple[Tensor, list[list[list[int]]]]:
    """(N, width, LONGEST) images by their operation in each step, those that have none behind the others, and how many
    each operation has, by chain and step. draws: as orders. lengths: of the chains (N, width).

    The numbers of all steps come from the device at once, for each reading makes the host wait for it.
    """
    none = len(OPERATIONS)
    within = lengths[:, :, None] > torch.arange(LONGEST, device=lengths.device)
    kinds = torch.where(within, (none * draws).long(), none)
    counts = (kinds[..., None] == torch.arange(none, device=kinds.device)).sum(0)
    return kinds.argsort(dim=0, stable=True), counts.tolist()


def _one_step(images: Tensor, draws: Tensor, order: Tensor, sizes: list[int], severity: float) -> Tensor:
    """One operation on each image that its chain has left, all images of an operation together.

    draws: (N, 2), of strength and sign. order: the images of the first operation, then of the next, sizes: of each.
    """
    strengths = (0.1 + (severity - 0.1) * draws[:, 0]) / LEVELS  # of the full one
    signs = torch.where(draws[:, 1] < 0.5, -1.0, 1.0)
    changed = images.clone()
    for operation, chosen in zip(OPERATIONS, order[: sum(sizes)].split(sizes), strict=True):
        if len(chosen):
            changed[chosen] = operation(images[chosen], strengths[chosen], signs[chosen])
    return changed


def autocontrast(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Each channel stretched to the whole range; one of a single grey stays."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    stretched = (values - low) * (_GREYS - 1) / (high - low).clamp(min=1)
    return torch.where(high > low, stretched, values).to(images.dtype)


def equalize(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Each channel's greys moved so that all are equally frequent, as PIL moves them."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], _GREYS, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))  # pixels of the brightest grey, which has nowhere to go
    step = (flat.shape[2] - last) // (_GREYS - 1)
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=_GREYS - 1)
    moved = torch.where(step > 0, table.gather(2, flat), flat)
    return moved.view(images.shape).to(images.dtype)


def posterize(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """The lower bits dropped: of 8 bits 4 are left, less up to 4 of them by strength."""
    kept = 4 - (4 * strengths).long()
    masks = (-1 << (8 - kept)) & 0xFF
    return images & masks.to(images.dtype)[:, None, None, None]


def solarize(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Greys above a threshold inverted, which falls from 256 with the strength."""
    thresholds = (_GREYS - (_GREYS * strengths).long())[:, None, None, None]
    return torch.where(images < thresholds, images, _GREYS - 1 - images)


def rotate(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """About the centre, by up to 30 degrees."""
    angles = signs * strengths * math.radians(30)
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    ratio = images.shape[2] / images.shape[3]  # grids reach from -1 to 1 on both sides, whatever their lengths
    return _moved(images, [cosine, -sine * ratio, zero], [sine / ratio, cosine, zero])


def shear_x(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Rows shifted in proportion to their distance from the middle, by up to 0.3 of it."""
    shear, one, zero = 0.3 * signs * strengths, torch.ones_like(strengths), torch.zeros_like(strengths)
    return _moved(images, [one, shear * images.shape[2] / images.shape[3], zero], [zero, one, zero])


def shear_y(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Columns shifted in proportion to their distance from the middle, by up to 0.3 of it."""
    shear, one, zero = 0.3 * signs * strengths, torch.ones_like(strengths), torch.zeros_like(strengths)
    return _moved(images, [one, zero, zero], [shear * images.shape[3] / images.shape[2], one, zero])


def translate_x(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """To the side, by up to a third of the width."""
    shift, one, zero = 2 / 3 * signs * strengths, torch.ones_like(strengths), torch.zeros_like(strengths)
    return _moved(images, [one, zero, shift], [zero, one, zero])


def translate_y(images: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Up or down, by up to a third of the height."""
    shift, one, zero = 2 / 3 * signs * strengths, torch.ones_like(strengths), torch.zeros_like(strengths)
    return _moved(images, [one, zero, zero], [zero, one, shift])


def _moved(images: Tensor, first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Each image read at the places that its affine map gives, between pixels linearly, black outside."""
    maps = torch.stack([torch.stack(first, 1), torch.stack(second, 1)], 1).float()
    grid = affine_grid(maps, list(images.shape), align_corners=False)
    return grid_sample(images.float(), grid, align_corners=False).round().to(images.dtype)


OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    *(autocontrast, equalize, posterize, solarize, rotate, shear_x, shear_y, translate_x, translate_y),
)
