"""The compact network of ExpandNets, after Passalis and Tefas 2018."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Gt, Len
from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

Positive = Annotated[int, Gt(0)]


@option
class SmallNet:
    """Convolutions with batch norm, ReLU and max pooling, which halves each side, then dense layers and a head."""

    kind: Literal["smallnet"] = "smallnet"
    kernel: Literal[3, 5, 7, 9] = 7  # taps a side, with zeros around so that the size stays
    channels: Annotated[tuple[Positive, ...], Len(1)] = (8, 16, 32)  # outputs of each convolution
    hidden: tuple[Positive, ...] = (64,)  # neurons of each dense layer before the head

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Its layers: conv1, conv2, ..., fc1, ..., head. Of 32 x 32 images, 512 values reach the 64 neurons.

        Raises RecipeError for data that are no images, or smaller than what the poolings leave something of.
        """
        side = 2 ** len(self.channels)
        if len(input_shape) != 3 or min(input_shape[1:]) < side:
            raise RecipeError(
                f"model: smallnet takes images of {side} x {side} and more, the data's have shape {input_shape}"
            )
        layers: dict[str, nn.Module] = {}
        channels, *size = input_shape
        for number, width in enumerate(self.channels, 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, self.kernel, padding=self.kernel // 2)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"act{number}"] = nn.ReLU()
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels, size = width, [positions // 2 for positions in size]
        layers["flatten"] = nn.Flatten()
        features = channels * prod(size)
        for number, width in enumerate(self.hidden, 1):
            layers[f"fc{number}"] = nn.Linear(features, width)
            layers[f"act{len(self.channels) + number}"] = nn.ReLU()
            features = width
        layers["head"] = nn.Linear(features, outputs)
        return named_sequence(layers)
