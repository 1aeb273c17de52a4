"""Residual networks for small images (He et al. 2016), and wide ones (Zagoruyko and Komodakis 2016)."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from compresskit.models.parts.images import check_images, conv_block, conv_norm, head
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK = 4  # outputs of a block of three convolutions by its width; from 50 layers on


@option
class ResNet:
    """A residual net of 18, 34, 50, 101 or 152 layers: a 3x3 convolution, four stages of blocks, for 32 x 32 images."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 18
    width: Annotated[float, Gt(0)] = 1.0  # multiplier of all channels: 0.25 to 2.5 in the document

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: stem, stage1 to stage4 of block1, ..., head. Raises RecipeError for data that are no images."""
        check_images("resnet", input_shape, 8)
        stem = max(1, round(64 * self.width))
        layers: dict[str, nn.Module] = {"stem": conv_block(input_shape[0], stem, 3)}
        channels = stem
        for stage, count in enumerate(BLOCKS[self.depth]):
            width = max(1, round(64 * 2**stage * self.width))
            blocks: dict[str, nn.Module] = {}
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                bottleneck = self.depth >= 50
                blocks[f"block{number + 1}"] = Residual(channels, width, stride, bottleneck=bottleneck)
                channels = width * (BOTTLENECK if bottleneck else 1)
            layers[f"stage{stage + 1}"] = named_sequence(blocks)
        return named_sequence(layers | head(channels, outputs))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), the shortcut a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * (BOTTLENECK if bottleneck else 1)
        if bottleneck:
            parts = [conv_block(inputs, width, 1), conv_block(width, width, 3, stride)]
            last = conv_norm(width, outputs, 1)
        else:
            parts = [conv_block(inputs, width, 3, stride)]
            last = conv_norm(width, outputs, 3)
        named: dict[str, nn.Module] = {f"part{number}": part for number, part in enumerate(parts, 1)}
        self.body = named_sequence(named | {f"part{len(parts) + 1}": named_sequence(last)})
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else named_sequence(conv_norm(inputs, outputs, 1, stride))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + self.shortcut(x))
        return y


@option
class WideResNet:
    """A wide residual net: three stages of blocks with norm and ReLU before each convolution; 28-10 by default."""

    kind: Literal["wide-resnet"] = "wide-resnet"
    depth: Annotated[int, Ge(10)] = 28  # 4 more than a multiple of 6
    widen: Annotated[float, Gt(0)] = 10.0  # channels in units of 16, 32 and 64

    def __post_init__(self) -> None:
        if (self.depth - 4) % 6:
            raise ValueError(f"depth: {self.depth} is not 4 more than a multiple of 6; take 16, 22, 28, 34, 40, ...")

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: stem, stage1 to stage3 of block1, ..., norm, head. Raises RecipeError for no images."""
        check_images("wide-resnet", input_shape, 4)
        channels = 16
        layers: dict[str, nn.Module] = {"stem": nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)}
        for stage in range(3):
            width = max(1, round(16 * 2**stage * self.widen))
            blocks: dict[str, nn.Module] = {}
            for number in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks[f"block{number + 1}"] = PreActivated(channels, width, stride)
                channels = width
            layers[f"stage{stage + 1}"] = named_sequence(blocks)
        layers |= {"norm": nn.BatchNorm2d(channels), "act": nn.ReLU()}
        return named_sequence(layers | head(channels, outputs))


class PreActivated(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); where the shape changes, a 1x1 convolution of relu(norm(x)) for x."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = inputs == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.norm1(x))
        y: Tensor = self.conv2(self.act2(self.norm2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))
