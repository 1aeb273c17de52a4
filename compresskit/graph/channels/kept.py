"""A network of full size that computes what a cut one does: it does not see what is dead."""

import copy

import torch
from torch import Tensor, fx

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


def _narrow(network: fx.GraphModule, node: fx.Node, channels: Channels, alive: Tensor) -> None:
    """The norm of the channels that stay, and zeros at the others, under the name of the node.

    It is written in calls that a table holds, so that this network has a fingerprint as any other.
    """
    norm, graph = channels.norms[node.name], network.graph
    left = alive[norm.atoms]
    path = f"{node.target}." if node.op == "call_module" else None
    read = {str(source.target) for source in node.all_input_nodes if source is not node.args[0]}
    for (name, dim), atoms in channels.slots.items():
        if name in read or (path and name.startswith(path)):
            take(network, [name], dim, alive[atoms].nonzero(as_tuple=True)[0])
    resize_norm(network, node, left, norm.dim)
    with graph.inserting_before(node):
        kept = _held(network, f"{node.name}_kept", left.nonzero(as_tuple=True)[0])
        selected = graph.call_function(torch.index_select, (node.args[0], norm.dim, kept))
        if norm.kind == "statistic":
            node.args = (selected, *node.args[1:])
            return
        inner = graph.create_node(node.op, node.target, (selected, *node.args[1:]), node.kwargs)
        both = graph.call_function(torch.cat, ((inner, graph.call_function(torch.zeros_like, (inner,))), norm.dim))
        count = int(left.sum())
        places = _held(network, f"{node.name}_places", torch.where(left, left.cumsum(0) - 1, count))
    inner.meta, inner.type = dict(node.meta), node.type
    node.op, node.target, node.args, node.kwargs = "call_function", torch.index_select, (both, norm.dim, places), {}


def _mask(network: fx.GraphModule, node: fx.Node, place: int, alive: Tensor) -> None:
    """Zeros in place of what is dead in one argument of the node."""
    with network.graph.inserting_before(node):
        dead = _held(network, f"{node.name}_dead", ~alive)
        masked = network.graph.call_function(torch.masked_fill, (node.args[place], dead, 0.0))
    masked.meta["scope"] = node.meta.get("scope", "")
    node.args = (*node.args[:place], masked, *node.args[place + 1 :])


def _held(network: fx.GraphModule, name: str, tensor: Tensor) -> fx.Node:
    """A node that reads a new buffer of the network."""
    while hasattr(network, name):
        name += "_"
    network.register_buffer(name, tensor.to(next(network.parameters()).device))
    return network.graph.get_attr(name)
