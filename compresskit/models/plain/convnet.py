"""Plain convolutional networks, in one or two dimensions."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Len, Lt
from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.activations import ACTIVATIONS, Activation, check_width
from compresskit.models.parts.initialisation import Initialisation, initialise
from compresskit.models.parts.sequences import dense, named_sequence
from compresskit.options import option

Positive = Annotated[int, Gt(0)]

_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_POOL: dict[tuple[str, int], type[nn.Module]] = {
    ("max", 1): nn.MaxPool1d,
    ("max", 2): nn.MaxPool2d,
    ("avg", 1): nn.AvgPool1d,
    ("avg", 2): nn.AvgPool2d,
}


@option
class ConvNet:
    """Convolutions conv1, conv2, ... with pooling, then dense layers fc1, ... and head; 1-D or 2-D as the data are."""

    kind: Literal["convnet"] = "convnet"
    channels: Annotated[tuple[Positive, ...], Len(1)]  # outputs of each convolution
    kernel: Positive = 3  # taps in each dimension
    stride: Positive = 1
    padding: Literal["same", "valid"] = "same"  # same: zeros, so that a stride of 1 keeps the size; valid: none
    batch_norm: bool = False  # between each convolution or dense layer and its activation
    activation: Activation = "relu"
    pool: Literal["max", "avg", "none"] = "max"
    pool_size: Positive = 2  # window and stride; a map smaller than the window is left as it is
    pool_every: Positive | tuple[Positive, ...] = 1  # pool behind every so many convolutions, or behind these numbers
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  # where a pooling belongs, and behind each dense layer
    dense: tuple[Positive, ...] = ()  # widths of hidden dense layers before the head
    initialisation: Initialisation = "torch"  # gaussian: weights from N(0, 0.05), as FuseInit draws them; biases 0

    def __post_init__(self) -> None:
        if self.padding == "same" and self.kernel % 2 == 0:
            raise ValueError("kernel: padding: same needs an odd kernel; use padding: valid for an even one")
        if isinstance(self.pool_every, tuple) and max(self.pool_every, default=0) > len(self.channels):
            raise ValueError(f"pool_every: there are {len(self.channels)} convolutions, given {list(self.pool_every)}")
        check_width(self.activation, (*self.channels, *self.dense))

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Raises RecipeError where the data are no maps, or smaller than what the convolutions take."""
        if len(input_shape) not in (2, 3):
            raise RecipeError(
                f"model: convnet takes inputs of shape (C, L) or (C, H, W), the data's have {input_shape}; use mlp"
            )
        layers: dict[str, nn.Module] = {}
        channels, size = input_shape[0], input_shape[1:]
        for number, width in enumerate(self.channels, 1):
            block, size = self._block(number, channels, width, size)
            layers |= block
            channels = width
        layers["flatten"] = nn.Flatten()
        features = channels * prod(size)
        for number, width in enumerate(self.dense, 1):
            layers |= dense(number, features, width, self.activation, self.batch_norm, self.dropout)
            features = width
        layers["head"] = nn.Linear(features, outputs)
        return initialise(named_sequence(layers), self.initialisation)

    def _block(
        self, number: int, channels: int, width: int, size: tuple[int, ...]
    ) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
        """A convolution with what follows it, by name, and the size of the map that it leaves."""
        dimensions = len(size)
        padding = self.kernel // 2 if self.padding == "same" else 0
        block: dict[str, nn.Module] = {
            f"conv{number}": _CONV[dimensions](channels, width, self.kernel, self.stride, padding)
        }
        size = tuple((positions + 2 * padding - self.kernel) // self.stride + 1 for positions in size)
        if min(size) < 1:
            raise RecipeError(
                f"model: conv{number} has a kernel larger than its map; use fewer layers or padding: same"
            )
        if self.batch_norm:
            block[f"norm{number}"] = _NORM[dimensions](width)
        block[f"act{number}"] = ACTIVATIONS[self.activation]()
        if self._ends_block(number):
            if self.pool != "none" and min(size) >= self.pool_size:
                block[f"pool{number}"] = _POOL[self.pool, dimensions](self.pool_size)
                size = tuple(positions // self.pool_size for positions in size)
            if self.dropout:
                block[f"dropout{number}"] = nn.Dropout(self.dropout)
        return block, size

    def _ends_block(self, number: int) -> bool:
        if isinstance(self.pool_every, tuple):
            return number in self.pool_every
        return number % self.pool_every == 0
