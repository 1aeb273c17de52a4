"""MobileNet, the first version (Howard et al. 2017, Table 1)."""

from typing import Annotated, Literal

from annotated_types import Gt
from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.mlp import named_sequence
from compresskit.options import option

STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


@option
class MobileNet:
    """A 3x3 convolution and 13 depthwise separable blocks with batch norm and ReLU, mean over positions, and a head."""

    kind: Literal["mobilenet"] = "mobilenet"
    width: Annotated[float, Gt(0)] = 1.0  # multiplier of all channels
    small_images: bool = False  # keep the size in the first convolution and the first strided block, for 32 x 32 images

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: conv0, then block1 to block13 (depthwise, pointwise), head. Raises RecipeError for no images."""
        if len(input_shape) != 3:
            raise RecipeError(f"model: mobilenet takes images (C, H, W), the data's have shape {input_shape}")
        channels = self._scaled(STEM)
        stem = nn.Conv2d(input_shape[0], channels, 3, 1 if self.small_images else 2, 1, bias=False)
        layers: dict[str, nn.Module] = {"conv0": stem, "norm0": nn.BatchNorm2d(channels), "act0": nn.ReLU()}
        for number, (width, stride) in enumerate(BLOCKS, 1):
            kept = self.small_images and number == 2
            layers[f"block{number}"] = _separable(channels, self._scaled(width), 1 if kept else stride)
            channels = self._scaled(width)
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(channels, outputs)}
        return named_sequence(layers)

    def _scaled(self, channels: int) -> int:
        return max(1, round(self.width * channels))


def _separable(channels: int, width: int, stride: int) -> nn.Sequential:
    return named_sequence(
        {
            "depthwise": nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            "norm1": nn.BatchNorm2d(channels),
            "act1": nn.ReLU(),
            "pointwise": nn.Conv2d(channels, width, 1, bias=False),
            "norm2": nn.BatchNorm2d(width),
            "act2": nn.ReLU(),
        }
    )
