"""The activations that a network of our own can have."""

from typing import Literal

from torch import nn

Activation = Literal["relu", "leaky-relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "none"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "none": nn.Identity,
}
