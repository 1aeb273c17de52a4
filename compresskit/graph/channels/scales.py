"""Which norms scale which channels, and by what."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.walk import Channels
from compresskit.graph.operations import INSTANCE_NORMS, NORMS, called

_MODULES = (*NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_PLACES = {"batch_norm": 3, "instance_norm": 3, "layer_norm": 2, "rms_norm": 2, "group_norm": 2}  # of the scale


def norm_scales(network: fx.GraphModule, channels: Channels) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, atoms, |gamma|), (n,) each, of the scale of every norm: of a module, or an argument of a call.

    Where a norm has a scale for each position, too, it is the mean of |gamma| over them.
    """
    for name in dict.fromkeys(_scales(network)):
        for (tensor, dim), atoms in channels.slots.items():
            if tensor == name:
                gamma = network.get_parameter(name).detach().double().abs()
                yield name, atoms, gamma.movedim(dim, 0).flatten(1).mean(1) if gamma.ndim > 1 else gamma


def _scales(network: fx.GraphModule) -> Iterator[str]:
    """Names of the scales, in the order of the graph."""
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, _MODULES) and module.weight is not None:
                yield f"{node.target}.weight"
        elif (place := _PLACES.get(called(node))) is not None:
            given = node.kwargs.get("weight", node.args[place] if len(node.args) > place else None)
            if isinstance(given, fx.Node) and given.op == "get_attr":
                yield str(given.target)


def scaled(network: fx.GraphModule, channels: Channels) -> Tensor:
    """(n_atoms,) bool: those that some norm has a scale for."""
    found = torch.zeros(channels.n_atoms, dtype=torch.bool)
    for _, atoms, _ in norm_scales(network, channels):
        found[atoms] = True
    return found
