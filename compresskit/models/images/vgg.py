"""VGG for small images: stages of 3x3 convolutions (Simonyan and Zisserman 2015), one linear layer behind them."""

from typing import Annotated, Literal

from annotated_types import Gt
from torch import nn

from compresskit.models.parts.images import check_images, conv_block, head
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

WIDTHS = (64, 128, 256, 512, 512)
LAYERS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@option
class VGG:
    """VGG of 11, 13, 16 or 19 layers with batch norm, for 32 x 32 images: five stages and one linear layer."""

    kind: Literal["vgg"] = "vgg"
    depth: Literal[11, 13, 16, 19] = 19
    width: Annotated[float, Gt(0)] = 1.0  # multiplier of all channels

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: stage1 to stage5 of layer1, ..., pool1 to pool5, head. Raises RecipeError for no images."""
        check_images("vgg", input_shape, 32)
        channels = input_shape[0]
        layers: dict[str, nn.Module] = {}
        for stage, (width, count) in enumerate(zip(WIDTHS, LAYERS[self.depth], strict=True), 1):
            inner: dict[str, nn.Module] = {}
            for number in range(1, count + 1):
                inner[f"layer{number}"] = conv_block(channels, max(1, round(width * self.width)), 3)
                channels = max(1, round(width * self.width))
            layers |= {f"stage{stage}": named_sequence(inner), f"pool{stage}": nn.MaxPool2d(2)}
        return named_sequence(layers | head(channels, outputs))
