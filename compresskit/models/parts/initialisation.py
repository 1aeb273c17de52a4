"""How the weights of a network of our own are drawn."""

from math import sqrt
from typing import Literal

from torch import nn

Initialisation = Literal["torch", "gaussian"]

VARIANCE = 0.05  # FuseInit, section II-D, step 1


def initialise(network: nn.Module, how: Initialisation) -> nn.Module:
    """`network` itself; gaussian: every weight from N(0, 0.05), biases 0; torch: as its layers were made."""
    if how == "gaussian":
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                nn.init.normal_(module.weight, std=sqrt(VARIANCE))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return network
