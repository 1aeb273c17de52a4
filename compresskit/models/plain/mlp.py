"""Multilayer perceptrons."""

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from torch import nn

from compresskit.models.parts.activations import Activation, check_width
from compresskit.models.parts.initialisation import Initialisation, initialise
from compresskit.models.parts.sequences import dense, named_sequence
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
