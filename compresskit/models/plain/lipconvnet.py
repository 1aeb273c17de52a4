"""LipConvNet of "Skew Orthogonal Convolutions" (Singla and Feizi 2021), as SAO takes it (Table 4, section III-D 2)."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.activations import MaxMin, check_width
from compresskit.models.parts.images import check_images, padded
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

BLOCKS = 5
SIDE = 2**BLOCKS  # each block halves the sides


@option
class LipConvNet:
    """Five blocks of N/5 convolutions with MaxMin; the last of each has stride 2 and twice the channels (SAO).

    `train.init` with `soc` and `eco` makes the convolutions orthogonal.
    """

    kind: Literal["lipconvnet"] = "lipconvnet"
    depth: Annotated[int, Ge(BLOCKS)]  # N: convolutions, a multiple of 5
    width: Annotated[int, Gt(0)] = 32  # channels of the first block, even; the last one ends with 32 times as many
    kernel: Annotated[int, Gt(0)] = 3  # taps a side, odd, with zeros around so that a stride of 1 keeps the size

    def __post_init__(self) -> None:
        if self.depth % BLOCKS:
            raise ValueError(f"depth: {self.depth} is not a multiple of {BLOCKS}; take 5, 10, 15, 20, ...")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} is even and would change the size of maps; take 1, 3, 5, ...")
        check_width("maxmin", (self.width,))

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: pad (of images smaller than 32 x 32), block1 to block5 of conv1, act1, ..., head.

        Raises RecipeError for data that are no images, or whose sides are no multiples of 32.
        """
        check_images("lipconvnet", input_shape)
        layers, (inputs, *size) = padded(input_shape, SIDE)
        if any(positions % SIDE for positions in size):
            raise RecipeError(
                f"model: lipconvnet takes images whose sides are multiples of {SIDE}, or less, given {input_shape}"
            )
        width = self.width
        for number in range(1, BLOCKS + 1):
            layers[f"block{number}"] = _block(inputs, width, self.depth // BLOCKS, self.kernel)
            inputs = width = 2 * width
        features = inputs * prod(positions // SIDE for positions in size)
        return named_sequence(layers | {"flatten": nn.Flatten(), "head": nn.Linear(features, outputs)})


def _block(inputs: int, width: int, count: int, kernel: int) -> nn.Sequential:
    """Convolutions of `width` channels, and a last one with stride 2 and twice as many; MaxMin behind each."""
    layers: dict[str, nn.Module] = {}
    for number in range(1, count + 1):
        factor = 2 if number == count else 1
        layers[f"conv{number}"] = nn.Conv2d(inputs, factor * width, kernel, stride=factor, padding=kernel // 2)
        layers[f"act{number}"] = MaxMin()
        inputs = factor * width
    return named_sequence(layers)
