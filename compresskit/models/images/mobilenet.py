"""MobileNet, the first version (Howard et al. 2017, Table 1) and the second (Sandler et al. 2018, Table 2)."""

from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor, nn

from compresskit.models.parts.images import check_images, conv_block, conv_norm, head
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

INVERTED = (  # expansion, channels, blocks, stride of the first one
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
LAST = 1280


@option
class MobileNet:
    """A 3x3 convolution and 13 depthwise separable blocks with batch norm and ReLU, mean over positions, and a head."""

    kind: Literal["mobilenet"] = "mobilenet"
    width: Annotated[float, Gt(0)] = 1.0  # multiplier of all channels
    small_images: bool = False  # keep the size in the first convolution and the first strided block, for 32 x 32 images

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: conv0, then block1 to block13 (depthwise, pointwise), head. Raises RecipeError for no images."""
        check_images("mobilenet", input_shape)
        channels = self._scaled(STEM)
        stem = nn.Conv2d(input_shape[0], channels, 3, 1 if self.small_images else 2, 1, bias=False)
        layers: dict[str, nn.Module] = {"conv0": stem, "norm0": nn.BatchNorm2d(channels), "act0": nn.ReLU()}
        for number, (width, stride) in enumerate(BLOCKS, 1):
            kept = self.small_images and number == 2
            layers[f"block{number}"] = _separable(channels, self._scaled(width), 1 if kept else stride)
            channels = self._scaled(width)
        return named_sequence(layers | head(channels, outputs))

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


@option
class MobileNetV2:
    """Inverted residuals: 1x1 to more channels, depthwise 3x3, 1x1 to few without activation; for 32 x 32 images."""

    kind: Literal["mobilenet-v2"] = "mobilenet-v2"
    width: Annotated[float, Gt(0)] = 1.0  # multiplier of all channels
    small_images: bool = True  # keep the size in the first convolution and the first strided block

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: stem, block1 to block17, last, head. Raises RecipeError for data that are no images."""
        check_images("mobilenet-v2", input_shape)
        channels = self._scaled(STEM)
        stride = 1 if self.small_images else 2
        layers: dict[str, nn.Module] = {"stem": conv_block(input_shape[0], channels, 3, stride, activation=nn.ReLU6)}
        for stage, (expansion, width, count, first) in enumerate(INVERTED):
            for number in range(count):
                kept = number > 0 or (self.small_images and stage == 1)
                block = Inverted(channels, self._scaled(width), expansion, 1 if kept else first)
                layers[f"block{len(layers)}"] = block
                channels = self._scaled(width)
        last = max(LAST, self._scaled(LAST))
        layers["last"] = conv_block(channels, last, 1, activation=nn.ReLU6)
        return named_sequence(layers | head(last, outputs))

    def _scaled(self, channels: int) -> int:
        return max(1, round(self.width * channels))


class Inverted(nn.Module):
    """The body, added to what it reads where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        wider = {"wider": conv_block(inputs, inner, 1, activation=nn.ReLU6)} if expansion > 1 else {}
        depthwise = conv_block(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6)
        narrow = named_sequence(conv_norm(inner, outputs, 1))
        self.body = named_sequence({**wider, "depthwise": depthwise, "narrow": narrow})
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y
