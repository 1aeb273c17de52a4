"""The deep fully-connected network of "Sparsity-Aware Orthogonal Initialization" (SAO), Table 1."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from compresskit.models.parts.activations import Activation
from compresskit.models.parts.images import check_images, padded
from compresskit.models.parts.sequences import dense, named_sequence
from compresskit.options import option

SIDE = 32  # the 1024 inputs of Table 1 are MNIST's images with zeros around
FIRST = 512
WIDTH = 256


@option
class FNN:
    """Dense layers of 512, then N times 256 neurons, and a head, on images padded with zeros to 32 x 32 (SAO)."""

    kind: Literal["fnn"] = "fnn"
    depth: Annotated[int, Ge(1)]  # N: layers fc2 to fc{N+1} of 256 neurons, N - 1 of them square; to 1000 in SAO
    activation: Activation = "tanh"

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: pad (of images smaller than 32 x 32), fc1 to fc{N+1}, head. Raises RecipeError for no images."""
        check_images("fnn", input_shape)
        layers, shape = padded(input_shape, SIDE)
        layers["flatten"] = nn.Flatten()
        features = prod(shape)
        for number, width in enumerate((FIRST, *[WIDTH] * self.depth), 1):
            layers |= dense(number, features, width, self.activation, batch_norm=False, dropout=0)
            features = width
        layers["head"] = nn.Linear(features, outputs)
        return named_sequence(layers)
