"""Random flips and shifts of a whole batch of images at once, each image with its own draw."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import pad

from compresskit.data.augmentation.augmix import AugMix
from compresskit.data.augmentation.auto_augment import SEEDS, Policy, auto_augment
from compresskit.options import option


@option
class Augment:
    """Random changes to the training images, drawn anew for each image in each epoch."""

    flip: bool = False  # mirror left to right with probability 1/2
    crop: Annotated[int, Ge(0)] = 0  # pixels added on each side before a random crop of the old size
    pad_mode: Literal["zeros", "reflect"] = "zeros"  # black pixels (before normalisation), or the image mirrored
    auto: Policy | None = None  # AutoAugment, after flip and crop; slow, for it takes image by image
    augmix: AugMix | None = None  # chains of operations mixed with the image, after flip and crop; {} is the paper's
    # weight of the Jensen-Shannon divergence between what the net makes of an image and of two mixtures of it, which
    # costs three forward passes; AugMix's authors take 12. With 0 nets see one mixture in the place of the image
    consistency: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if self.consistency and self.augmix is None:
            raise ValueError("consistency: it compares mixtures of an image; add augmix: {}, or leave it out")
        if self.auto is not None and self.augmix is not None:
            raise ValueError("auto: augmix is set as well; keep one of them")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3) for each image: 1 if mirrored else 0, rows and columns of its shift in -crop .. crop.

        With auto a seed follows in each row; with augmix the draws of its own, of two mixtures with consistency.
        """
        mirrored = torch.randint(1 + self.flip, (count, 1), generator=generator)
        shifts = torch.randint(-self.crop, self.crop + 1, (count, 2), generator=generator)
        moves = torch.cat([mirrored, shifts], 1)
        if self.auto is not None:
            return torch.cat([moves, torch.randint(SEEDS, (count, 1), generator=generator)], 1)
        if self.augmix is None:
            return moves
        mixtures = 2 if self.consistency else 1
        return torch.cat([moves, *(self.augmix.draw(count, generator) for _ in range(mixtures))], 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images (N, C, H, W), of any type (uint8 for auto and augmix), changed by their draws.

        With consistency (3 N, C, H, W): all images flipped and cropped alone, then two mixtures of each.
        """
        moved = self._moved(images, draws[:, :3].long())
        if self.auto is not None:
            return auto_augment(moved, draws[:, 3], self.auto)
        if self.augmix is None:
            return moved
        if not self.consistency:
            return self.augmix(moved, draws[:, 3:])
        return torch.cat([moved, *(self.augmix(moved, own) for own in draws[:, 3:].chunk(2, 1))])

    def _moved(self, images: Tensor, draws: Tensor) -> Tensor:
        """Mirrored and shifted by draws (N, 3).

        One gather with the flip folded into its index. On a CPU, uint8 256 x 3 x 32 x 32, it took half the time of
        windows picked from `unfold`, and less against slicing image by image or grouping equal shifts.
        """
        height, width = images.shape[2:]
        mirrored, down, right = draws.unsqueeze(2).unbind(1)
        columns = torch.arange(width, device=images.device)
        rows = torch.arange(height, device=images.device) + down
        columns = torch.where(mirrored > 0, width - 1 - columns, columns) + right
        if self.pad_mode == "reflect":
            rows, columns = _reflect(rows, height), _reflect(columns, width)
        outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None]
        index = (rows[:, :, None] * width + columns[:, None]).masked_fill(outside, height * width)
        # What lies outside reads the one zero that is added behind the last pixel
        pixels = pad(images.flatten(2), (0, 1))
        return pixels.gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices mirrored at the first and the last pixel, which are not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()
