"""The two LeNets that papers on compression use."""

from typing import Literal

from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.sequences import named_sequence
from compresskit.models.plain.mlp import MLP
from compresskit.options import option


@option
class LeNet300100:
    """Dense layers fc1 (300), fc2 (100) and head, with ReLU (LeCun et al. 1998)."""

    kind: Literal["lenet-300-100"] = "lenet-300-100"

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return MLP(widths=(300, 100)).build(input_shape, outputs)


@option
class LeNet5:
    """Caffe's LeNet: conv1 (20, 5x5), conv2 (50, 5x5), each with 2x2 max-pooling; fc1 (500) with ReLU; head."""

    kind: Literal["lenet-5"] = "lenet-5"

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise RecipeError(f"model: lenet-5 takes images (C, H, W) of 16x16 or more, the data's are {input_shape}")
        channels, height, width = input_shape
        positions = _behind_both(height) * _behind_both(width)
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(channels, 20, 5),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(20, 50, 5),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(50 * positions, 500),
            "relu": nn.ReLU(),
            "head": nn.Linear(500, outputs),
        }
        return named_sequence(layers)


def _behind_both(size: int) -> int:
    """Positions that two 5-tap convolutions without padding leave, each followed by 2-fold pooling."""
    return ((size - 4) // 2 - 4) // 2
