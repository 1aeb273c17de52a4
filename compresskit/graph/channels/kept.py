"""Networks of full size that compute what a cut one does: they do not see what is dead."""

import copy
from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.resize import resize_norm, take
from compresskit.graph.channels.walk import Channels
from compresskit.graph.format.table import tensor_of


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
            tensor = tensor_of(network, name)
            dead = (~alive[channels.slots[name, dim]]).nonzero(as_tuple=True)[0]
            tensor.index_fill_(dim, dead.to(tensor.device), 0)
    narrowed = set[str]()
    for node in list(network.graph.nodes):
        norm = channels.norms.get(node.name)
        if norm is not None and not bool(alive[norm.atoms].all()):
            _narrow(network, node, channels, alive, narrowed)
        for place, atoms in channels.sums.get(node.name, {}).items():
            if not bool(alive[atoms].all()):
                _mask(network, node, place, alive[atoms])
    network.graph.lint()
    network.recompile()
    return network


def _narrow(network: fx.GraphModule, node: fx.Node, channels: Channels, alive: Tensor, narrowed: set[str]) -> None:
    """The norm of the channels that stay, and zeros at the others, under the name of the node.

    It is written in calls that a table holds, so that this network has a fingerprint as any other. narrowed: tensors
    that an earlier call of the same norm has narrowed.
    """
    norm, graph = channels.norms[node.name], network.graph
    left = alive[norm.atoms]
    path = f"{node.target}." if node.op == "call_module" else None
    read = {str(source.target) for source in node.all_input_nodes if source is not node.args[0]}
    for (name, dim), atoms in channels.slots.items():
        if name not in narrowed and (name in read or (path and name.startswith(path))):
            narrowed.add(name)
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


@dataclass(frozen=True)
class Beside:
    """Two networks in one. whole, kept: by node of each, the name that it has in `network`."""

    network: fx.GraphModule
    whole: dict[str, str]
    kept: dict[str, str]


def beside(network: fx.GraphModule, channels: Channels, alive: Tensor, solved: Container[str]) -> Beside:
    """The whole network, and beside it one that does not see what is dead, in which the layers `solved` give what they
    give in the whole one: there each of them reads what it will read if all others are solved without an error.

    A node that has one value in both is there once. It shares tensors with `network`.
    """
    blind, root, graph = kept_norms(network, channels, alive), nn.Module(), fx.Graph()
    root.add_module("whole", network)
    root.add_module("kept", blind)
    before = network.state_dict()
    changed = {name for name, tensor in blind.state_dict().items() if not _is_equal(tensor, before.get(name))}
    whole, kept = dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    *own, output = network.graph.nodes
    for node in own:
        whole[node] = _under("whole", graph, node, whole)
    twins = {node.name: copy for node, copy in whole.items()}
    for node in list(blind.graph.nodes)[:-1]:
        twin = twins.get(node.name)
        if twin is None or not (_is_forced(node, solved) or _is_same(node, twin, kept, twins, changed)):
            kept[node] = _under("kept", graph, node, kept)
        else:
            kept[node] = twin
    graph.node_copy(output, whole.__getitem__)
    names = ({node.name: copy.name for node, copy in copies.items()} for copies in (whole, kept))
    return Beside(fx.GraphModule(root, graph), *names)


def _is_forced(node: fx.Node, solved: Container[str]) -> bool:
    """Whether it has the value of the whole network whatever it reads."""
    return node.op == "placeholder" or (node.op == "call_module" and node.target in solved)


def _is_same(
    node: fx.Node, twin: fx.Node, kept: dict[fx.Node, fx.Node], twins: dict[str, fx.Node], changed: set[str]
) -> bool:
    """Whether it computes what its twin does, of the same. changed: names of tensors."""
    target = node.target
    if node.op in ("call_module", "get_attr"):
        if any(f"{name}.".startswith(f"{target}.") for name in changed):
            return False
        target = f"whole.{target}"
    return target == twin.target and all(kept[one] is twins.get(one.name) for one in node.all_input_nodes)


def _is_equal(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.shape == other.shape and torch.equal(tensor, other)


def _under(prefix: str, graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    copy = graph.node_copy(node, copies.__getitem__)
    if node.op in ("call_module", "get_attr"):
        copy.target = f"{prefix}.{node.target}"
    return copy
