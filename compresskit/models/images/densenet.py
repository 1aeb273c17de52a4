"""Densely connected networks for small images (Huang et al. 2017)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from compresskit.models.parts.images import check_images, head
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

BLOCKS = 3


@option
class DenseNet:
    """A densely connected net: three blocks whose layers read all before them, and two transitions; DenseNet-40."""

    kind: Literal["densenet"] = "densenet"
    depth: Annotated[int, Ge(7)] = 40  # 4 more than a multiple of 3
    growth: Annotated[int, Gt(0)] = 12  # channels that a layer adds
    stem: Annotated[int, Gt(0)] = 16  # channels of the first convolution

    def __post_init__(self) -> None:
        if (self.depth - 4) % BLOCKS:
            raise ValueError(f"depth: {self.depth} is not 4 more than a multiple of 3; take 40, 64, 100, ...")

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: stem, block1, transition1, block2, transition2, block3, norm, head.

        Raises RecipeError for data that are no images.
        """
        check_images("densenet", input_shape, 4)
        channels = self.stem
        layers: dict[str, nn.Module] = {"stem": nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)}
        for block in range(1, BLOCKS + 1):
            inner: dict[str, nn.Module] = {}
            for number in range((self.depth - 4) // BLOCKS):
                inner[f"layer{number + 1}"] = Grown(channels, self.growth)
                channels += self.growth
            layers[f"block{block}"] = named_sequence(inner)
            if block < BLOCKS:
                layers[f"transition{block}"] = _activated(channels, channels, 1, pool=nn.AvgPool2d(2))
        layers |= {"norm": nn.BatchNorm2d(channels), "act": nn.ReLU()}
        return named_sequence(layers | head(channels, outputs))


class Grown(nn.Module):
    """x with the channels that a 3x3 convolution of relu(norm(x)) adds behind it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = _activated(inputs, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def _activated(inputs: int, outputs: int, kernel: int, **behind: nn.Module) -> nn.Sequential:
    """norm, act and conv, and what comes behind."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return named_sequence({"norm": nn.BatchNorm2d(inputs), "act": nn.ReLU(), "conv": conv, **behind})
