"""Layers one behind another, under names."""

from torch import nn

from compresskit.models.parts.activations import ACTIVATIONS, Activation


def named_sequence(layers: dict[str, nn.Module]) -> nn.Sequential:
    """The layers one behind another, under their names."""
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


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
