"""A network of full size that computes what a cut one does: it does not see what is dead."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.resize import resize_norm, take
from compresskit.graph.channels.walk import Channels


def kept_norms(network: fx.GraphModule, channels: Channels, alive: Tensor) -> fx.GraphModule:
    """Copy of `network` whose layers read zeros in place of dead atoms and whose norms are computed on what stays: at
    every channel that stays, each node has the value that it has in the cut network.

    Shapes are those of `network`, but for tensors of norms whose statistics run over channels. channels: of this
    network, or of one with the same nodes. alive: (n_atoms,) bool.
    """
    alive = alive.cpu()
    network = copy.deepcopy(network)
    with torch.no_grad():
        for name, dim in channels.blinding:
            path, _, attribute = name.rpartition(".")
            tensor = getattr(network.get_submodule(path), attribute)
            dead = (~alive[channels.slots[name, dim]]).nonzero(as_tuple=True)[0]
            tensor.index_fill_(dim, dead.to(tensor.device), 0)
    for node in list(network.graph.nodes):
        norm = channels.norms.get(node.name)
        if norm is not None and not bool(alive[norm.atoms].all()):
            _narrow(network, node, channels, alive)
        for place, atoms in channels.sums.get(node.name, {}).items():
            if not bool(alive[atoms].all()):
                _mask(network, node, place, alive[atoms])
    network.graph.lint()
    network.recompile()
    return network


class _Kept(nn.Module):
    """A norm of what lies at the places `kept` along `dim`, and zeros elsewhere; or a statistic of it alone. norm: a
    module or a function."""

    kept: Tensor

    def __init__(self, norm: Callable[..., Tensor], kept: Tensor, dim: int, is_statistic: bool) -> None:
        super().__init__()
        self.norm, self.dim, self.is_statistic = norm, dim, is_statistic
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.norm(x.index_select(self.dim, self.kept), *args, **kwargs)
        if self.is_statistic:
            return y
        return y.new_zeros(x.shape).index_copy(self.dim, self.kept, y)


class _Masked(nn.Module):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.mask, 0)


def _narrow(network: fx.GraphModule, node: fx.Node, channels: Channels, alive: Tensor) -> None:
    """The norm of the channels that stay, under the name of the node."""
    norm = channels.norms[node.name]
    left = alive[norm.atoms]
    path = f"{node.target}." if node.op == "call_module" else None
    read = {str(source.target) for source in node.all_input_nodes if source is not node.args[0]}
    for (name, dim), atoms in channels.slots.items():
        if name in read or (path and name.startswith(path)):
            take(network, [name], dim, alive[atoms].nonzero(as_tuple=True)[0])
    resize_norm(network, node, left, norm.dim)
    called: Any = network.get_submodule(str(node.target)) if path else node.target
    if node.op == "call_method":
        called = getattr(torch.Tensor, str(node.target))
    kept = left.nonzero(as_tuple=True)[0].to(next(network.parameters()).device)
    node.op, node.target = "call_module", _added(network, node, _Kept(called, kept, norm.dim, norm.kind == "statistic"))


def _mask(network: fx.GraphModule, node: fx.Node, place: int, alive: Tensor) -> None:
    path = _added(network, node, _Masked(alive.to(next(network.parameters()).device)))
    with network.graph.inserting_before(node):
        masked = network.graph.call_module(path, (node.args[place],))
    masked.meta["scope"] = node.meta.get("scope", "")
    node.args = (*node.args[:place], masked, *node.args[place + 1 :])


def _added(network: fx.GraphModule, node: fx.Node, module: nn.Module) -> str:
    """The path of a new module."""
    name = f"{node.name}_kept"
    while hasattr(network, name):
        name += "_"
    network.add_submodule(name, module)
    return name
