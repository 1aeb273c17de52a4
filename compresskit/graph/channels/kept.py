"""A network of full size that computes what a cut one does: it does not see what is dead."""

import copy

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


class _Restored(nn.Module):
    """x at the places `kept` along `dim` of a value that has zeros elsewhere."""

    kept: Tensor

    def __init__(self, kept: Tensor, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.dim, self.size = dim, size

    def forward(self, x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[self.dim] = self.size
        return x.new_zeros(shape).index_copy(self.dim, self.kept, x)


class _Picked(nn.Module):
    kept: Tensor

    def __init__(self, kept: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.kept)


class _Masked(nn.Module):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.mask, 0)


def _narrow(network: fx.GraphModule, node: fx.Node, channels: Channels, alive: Tensor) -> None:
    """The norm of the channels that stay, and zeros in place of the others."""
    norm = channels.norms[node.name]
    left = alive[norm.atoms]
    kept = left.nonzero(as_tuple=True)[0]
    source, *others = node.all_input_nodes
    path = f"{node.target}." if node.op == "call_module" else None
    read = {str(other.target) for other in others}
    for (name, dim), atoms in channels.slots.items():
        if name in read or (path and name.startswith(path)):
            take(network, name, dim, alive[atoms].nonzero(as_tuple=True)[0])
    resize_norm(network, node, left, norm.dim)
    node.replace_input_with(source, _added(network, node, _Picked(kept, norm.dim), source, before=True))
    restored = _added(network, node, _Restored(kept, norm.dim, len(left)), node, before=False)
    node.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not restored)


def _mask(network: fx.GraphModule, node: fx.Node, place: int, alive: Tensor) -> None:
    source = node.args[place]
    assert isinstance(source, fx.Node)
    masked = _added(network, node, _Masked(alive), source, before=True)
    node.args = (*node.args[:place], masked, *node.args[place + 1 :])


def _added(network: fx.GraphModule, node: fx.Node, module: nn.Module, value: fx.Node, *, before: bool) -> fx.Node:
    name = f"{node.name}_kept"
    while hasattr(network, name):
        name += "_"
    network.add_submodule(name, module.to(next(network.parameters()).device))
    with network.graph.inserting_before(node) if before else network.graph.inserting_after(node):
        made = network.graph.call_module(name, (value,))
    made.meta["scope"] = node.meta.get("scope", "")
    return made
