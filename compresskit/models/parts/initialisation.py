"""How the weights of a network of our own are drawn, and from which random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Literal

import torch
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


@contextmanager
def seeded(seed: int, network: nn.Module | None = None) -> Iterator[None]:
    """Random numbers of the block come from `seed`, on the CPU and on the GPUs that the network lies on.

    Theirs are as they were afterwards. Other GPUs are not asked: each would be waited for, and torch warns of several.
    """
    parameters = network.parameters() if network is not None else ()
    gpus = {parameter.device for parameter in parameters if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(gpus)):
        if gpus:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
        yield
