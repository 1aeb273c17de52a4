"""The activations that a network of our own can have."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "leaky-relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "maxmin", "none"]


class MaxMin(nn.Module):
    """The larger, then the smaller one of channel i of the first half and channel i of the second (Anil et al. 2019).

    It only swaps values, so it keeps the norm, and so does its Jacobian. Channels are dimension 1, an even number.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.chunk(x, 2, 1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "maxmin": MaxMin,
    "none": nn.Identity,
}


def check_width(activation: Activation, widths: Iterable[int]) -> None:
    """Raises ValueError where an activation of pairs of channels would stand behind an odd number of them."""
    odd = [width for width in widths if width % 2]
    if activation == "maxmin" and odd:
        raise ValueError(f"activation: maxmin takes channels in pairs, {odd[0]} is odd; use even widths")
