"""Parts of a network: what makes one value of another, and the blocks that only one value enters and one leaves."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.graph.chains import WEIGHTED, closure
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.operations import (
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    NORMS,
    SPATIAL,
    SPATIAL_MODULES,
    TRANSPOSED,
    called,
)

_NORMS = frozenset(
    """
    BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d GroupNorm LayerNorm RMSNorm
    batch_norm instance_norm group_norm layer_norm rms_norm
    """.split()
)
_JOINING = frozenset({"cat", "concat"})
_ACTING = ELEMENTWISE | ELEMENTWISE_MODULES | SPATIAL | SPATIAL_MODULES | _NORMS
_KEEPING = frozenset(name for name in _ACTING if "pad" not in name.lower())  # that may add channels


@dataclass(frozen=True)
class Block:
    """Nodes by name: the value of `source` enters, that of `target` leaves. layers: the weighted ones in it."""

    source: str
    target: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where channels of a compressed network lie among the whole one's. kept: (n,) int64, along `dim`. of: how many the
    whole one has."""

    dim: int
    kept: Tensor
    of: int


def segment(network: fx.GraphModule, source: fx.Node, target: fx.Node) -> fx.GraphModule | None:
    """What makes the value of `target` of that of `source`; None where it takes more of the network's input.

    It shares its modules and tensors with `network`.
    """
    inside = {target, *closure(target, lambda node: [] if node is source else node.all_input_nodes)} - {source}
    if any(node.op == "placeholder" for node in inside):
        return None
    graph = fx.Graph()
    copies = {source: graph.placeholder(source.name)}  # a name that no other node has
    for node in network.graph.nodes:
        if node in inside:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[target])
    return fx.GraphModule(network, graph)


def behind(network: fx.GraphModule, layer: fx.Node) -> fx.Node:
    """The last of the nodes that follow a layer one by one and act on each value alone: its batch norm and activation.

    So does MaxMin, which acts on pairs of channels, and an order of channels, which moves them. In eval mode.
    """
    last = layer
    while len(last.users) == 1:
        (reader,) = last.users
        if reader.all_input_nodes == [last] and _is_elementwise(network, reader):
            last = reader
        elif called(reader) == "chunk" and (joined := _maxmin(reader)) is not None:
            last = joined
        else:
            break
    return last


def find_blocks(network: fx.GraphModule, least: int, known: Callable[[fx.Node], bool]) -> list[Block]:
    """From the input to the output: each ends where only one value leaves, once `least` weighted layers are in it.

    A residual sum ends where its branches meet. known: of a node, whether a block may end there. What no single value
    leaves, such as the heads of a detector, is in no block; a rest with fewer layers is a block of its own.
    """
    nodes = [node for node in network.graph.nodes if node.op not in ("get_attr", "output")]
    ends = [node for node in _passed_by_all(nodes) if known(node)]
    found, layers, source, left = list[Block](), list[str](), nodes[0], set(ends)
    for node, following in zip(nodes[1:], [*nodes[2:], None], strict=True):
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), WEIGHTED):
            layers.append(str(node.target))
        goes_on = following is not None and following in left and _keeps(network, following)  # a norm, an activation
        if node in left and layers and not goes_on and (len(layers) >= least or node is ends[-1]):
            found.append(Block(source.name, node.name, tuple(layers)))
            source, layers = node, []
    return found


def node_places(whole: fx.GraphModule, places: Mapping[str, Tensor | None]) -> dict[str, Place]:
    """By node, where the channels of its value lie that a compressed network has, as far as the layers that make them
    tell.

    whole: the network before. places: by layer, which of its outputs are left; None for all.
    """
    found: dict[str, Place] = {}
    for node in whole.graph.nodes:
        place = _place_of(whole, node, places, found)
        if place is not None:
            found[node.name] = place
    return found


def _place_of(
    whole: fx.GraphModule, node: fx.Node, places: Mapping[str, Tensor | None], before: Mapping[str, Place]
) -> Place | None:
    if node.op == "call_module" and str(node.target) in places:
        layer = whole.get_submodule(str(node.target))  # attention as one module gives a tuple
        return _place(layer, places[str(node.target)]) if isinstance(layer, (*WEIGHTED, *TRANSPOSED)) else None
    joins = called(node) in _JOINING
    sources: Any = node.args[0] if joins else node.all_input_nodes  # one value may be joined with itself
    known = [before[source.name] for source in sources if source.name in before]
    if joins:
        return _joined(known, node) if len(known) == len(sources) else None
    return known[0] if _keeps(whole, node) and len({place.of for place in known}) == 1 else None


def _place(layer: nn.Module, kept: Tensor | None) -> Place:
    linear = isinstance(layer, nn.Linear)
    width = int(layer.out_features if linear else layer.out_channels)  # type: ignore[arg-type]
    return Place(-1 if linear else 1, torch.arange(width) if kept is None else kept, width)


def _joined(places: Sequence[Place], node: fx.Node) -> Place | None:
    """Of channels behind one another."""
    dims = {place.dim for place in places} | {node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)}
    if len(dims) > 1:
        return None
    begins = itertools.accumulate((place.of for place in places), initial=0)
    kept = torch.cat([place.kept + begin for place, begin in zip(places, begins, strict=False)])
    return Place(places[0].dim, kept, sum(place.of for place in places))


def _passed_by_all(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes that no value passes by, in their order: a cut behind one of them cuts nothing else."""
    number, passed = {node: place for place, node in enumerate(nodes)}, set[int]()
    for node in nodes:
        last = max((number.get(user, len(nodes)) for user in node.users), default=number[node])
        passed.update(range(number[node] + 1, last))
    return [node for place, node in enumerate(nodes) if place not in passed]


def _keeps(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether each channel of the value is made of the same channel of what the node reads."""
    if node.op != "call_module":
        return node.op.startswith("call") and called(node) in _KEEPING
    module = network.get_submodule(str(node.target))
    depthwise = isinstance(module, WEIGHTED[1:]) and module.groups == module.in_channels == module.out_channels > 1
    return depthwise or type(module).__name__ in _KEEPING


def _is_elementwise(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, (*NORMS, ChannelPermutation)) or type(module).__name__ in ELEMENTWISE_MODULES
    return called(node) in ELEMENTWISE


def _maxmin(chunk: fx.Node) -> fx.Node | None:
    """The node that joins the larger and the smaller ones of the two halves again, if that is all that is done."""
    chosen = {user for item in chunk.users for user in item.users}
    joined = {user for node in chosen for user in node.users}
    if {called(node) for node in chosen} == {"maximum", "minimum"} and [called(node) for node in joined] == ["cat"]:
        return joined.pop()
    return None
