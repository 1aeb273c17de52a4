"""Parts of a network as functions of one value."""

from torch import fx

from compresskit.graph.chains import closure
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.operations import ELEMENTWISE, ELEMENTWISE_MODULES, NORMS, called


def segment(network: fx.GraphModule, source: fx.Node, target: fx.Node) -> fx.GraphModule | None:
    """What makes the value of `target` of that of `source`; None where it takes more of the network's input.

    It shares its modules and tensors with `network`.
    """
    inside = {target, *closure(target, lambda node: [] if node is source else node.all_input_nodes)} - {source}
    if any(node.op == "placeholder" for node in inside):
        return None
    graph = fx.Graph()
    copies = {source: graph.placeholder("value")}
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
