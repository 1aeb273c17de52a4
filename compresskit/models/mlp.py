"""Multilayer perceptrons."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from torch import nn

from compresskit.models.activations import ACTIVATIONS, Activation, check_width
from compresskit.models.initialisation import Initialisation, initialise
from compresskit.options import option


@option
class MLP:
    """Dense layers fc1, fc2, ... and head on the flattened input."""

    kind: Literal["mlp"] = "mlp"
    widths: tuple[Annotated[int, Gt(0)], ...]  # of the hidden layers; [] for a single linear layer
    activation: Activation = "relu"
    batch_norm: bool = False  # between each hidden layer and its activation
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  # behind each hidden layer
    initialisation: Initialisation = "torch"  # gaussian: weights from N(0, 0.05), as FuseInit draws them; biases 0

    def __post_init__(self) -> None:
        check_width(self.activation, self.widths)

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        features = prod(input_shape)
        for number, width in enumerate(self.widths, 1):
            layers |= dense(number, features, width, self.activation, self.batch_norm, self.dropout)
            features = width
        layers["head"] = nn.Linear(features, outputs)
        return initialise(named_sequence(layers), self.initialisation)


def dense(
    number: int, features: int, width: int, activation: Activation, batch_norm: bool, dropout: float
) -> dict[str, nn.Module]:
    """A hidden dense layer with what follows it, by name."""
    layers: dict[str, nn.Module] = {f"fc{number}": nn.Linear(features, width)}
    if batch_norm:
        layers[f"fc{number}_norm"] = nn.BatchNorm1d(width)
    layers[f"fc{number}_act"] = ACTIVATIONS[activation]()
    if dropout:
        layers[f"fc{number}_dropout"] = nn.Dropout(dropout)
    return layers


def named_sequence(layers: dict[str, nn.Module]) -> nn.Sequential:
    """The layers one behind another, under their names."""
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network
