"""The plain deep convolutional network of "Sparsity-Aware Orthogonal Initialization" (SAO), section III-D 1."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import nn

from compresskit.models.parts.activations import ACTIVATIONS, Activation, check_width
from compresskit.models.parts.images import check_images, head
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

STRIDED = (2, 3)  # numbers of the convolutions with stride 2


@option
class VanillaCNN:
    """N convolutions 3x3 of one width, without batch norm and skips; the second and third have stride 2 (SAO)."""

    kind: Literal["vanilla-cnn"] = "vanilla-cnn"
    depth: Annotated[int, Ge(3)]  # N: convolutions; to 768 in SAO
    width: Annotated[int, Gt(0)]  # W: channels of each; 32 to 256 in SAO
    activation: Activation = "tanh"
    pool: Literal["average", "strided"] = "average"  # before the head: mean over positions, or two strided convolutions

    def __post_init__(self) -> None:
        check_width(self.activation, (self.width,))

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: conv1 to conv{N}, or to conv{N+2} where strided, head. Raises RecipeError for no images."""
        check_images("vanilla-cnn", input_shape)
        pooling = (self.depth + 1, self.depth + 2) if self.pool == "strided" else ()
        layers: dict[str, nn.Module] = {}
        channels, *size = input_shape
        for number in range(1, self.depth + len(pooling) + 1):
            stride = 2 if number in (*STRIDED, *pooling) else 1
            layers[f"conv{number}"] = nn.Conv2d(channels, self.width, 3, stride, padding=1)
            layers[f"act{number}"] = ACTIVATIONS[self.activation]()
            channels, size = self.width, [(positions - 1) // stride + 1 for positions in size]
        if not pooling:
            return named_sequence(layers | head(channels, outputs))
        layers |= {"flatten": nn.Flatten(), "head": nn.Linear(channels * prod(size), outputs)}
        return named_sequence(layers)
