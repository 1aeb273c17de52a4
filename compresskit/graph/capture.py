"""Activations of named nodes, without running what lies behind them."""

from collections.abc import Sequence

from torch import fx

from compresskit.graph.chains import closure


def capture(network: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The network cut behind the last of the named nodes: calling it returns their values as a tuple, in this order.

    It shares its modules and tensors with `network`, which stays as it was. A value that other nodes still read is
    cloned, since an activation that works in place (ReLU) would overwrite it after it was captured.
    """
    read = {node for node in network.graph.nodes if node.name in names}
    needed = read.union(*(closure(node, lambda n: n.all_input_nodes) for node in read))
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in network.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output(tuple(by_name[name] for name in names))
    for copy in {by_name[name] for name in names}:
        if len(copy.users) > 1:
            _clone(graph, copy)
    return fx.GraphModule(network, graph)


def output_name(network: fx.GraphModule) -> str:
    """The node whose value the network returns."""
    (node,) = (node for node in network.graph.nodes if node.op == "output")
    return str(node.args[0].name)


def _clone(graph: fx.Graph, node: fx.Node) -> None:
    output = next(reader for reader in node.users if reader.op == "output")
    with graph.inserting_after(node):
        clone = graph.call_method("clone", (node,))
    output.replace_input_with(node, clone)
