"""The compact network of ExpandNets, after Passalis and Tefas 2018."""

from math import prod
from typing import Literal

from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

CHANNELS = (8, 16, 32)
HIDDEN = 64


@option
class SmallNet:
    """Three convolutions of 8, 16 and 32 channels with batch norm, ReLU and max pooling, then 64 neurons and a head."""

    kind: Literal["smallnet"] = "smallnet"
    kernel: Literal[3, 5, 7, 9] = 7  # taps a side, with zeros around so that the size stays

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Of 32 x 32 images, 512 values reach the 64 neurons. Raises RecipeError for data that are no images."""
        if len(input_shape) != 3 or min(input_shape[1:]) < 8:
            raise RecipeError(f"model: smallnet takes images of 8 x 8 and more, the data's have shape {input_shape}")
        layers: dict[str, nn.Module] = {}
        channels, *size = input_shape
        for number, width in enumerate(CHANNELS, 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, self.kernel, padding=self.kernel // 2)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"act{number}"] = nn.ReLU()
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels, size = width, [positions // 2 for positions in size]
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(channels * prod(size), HIDDEN)
        layers["act4"] = nn.ReLU()
        layers["head"] = nn.Linear(HIDDEN, outputs)
        return named_sequence(layers)
