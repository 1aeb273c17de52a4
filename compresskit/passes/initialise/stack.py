"""Runs of equal grouped layers as one module, where nothing lies between them but a shuffle and an activation."""

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn

from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.layers.grouped_stack import ACTIVATIONS, GroupedStack
from compresskit.graph.operations import called

_MODULES: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_NAMES = {module: name for name, module in _MODULES.items()}


@dataclass(frozen=True)
class _Link:
    """A square grouped layer with the shuffle before it and the activation behind."""

    shuffle: fx.Node
    layer: fx.Node
    act: fx.Node
    activation: str
    grouped: GroupedLinear

    def goes_on(self, before: "_Link") -> bool:
        """Whether it is like the one before, and reads that alone."""
        ours, theirs = self.grouped, before.grouped
        alike = (ours.out_features, ours.groups, ours.bias is None) == (
            theirs.out_features, theirs.groups, theirs.bias is None
        )  # fmt: skip
        alone = self.shuffle.args == (before.act,) and len(before.act.users) == 1
        return alike and alone and self.activation == before.activation


def stack(network: fx.GraphModule) -> list[list[str]]:
    """Puts a `GroupedStack` in the place of each run of two such layers or more, in place.

    Returns the names of the layers of each run; the stack has the name of the first.
    """
    runs: list[list[_Link]] = []
    for node in network.graph.nodes:
        link = _link(network, node)
        if link is None:
            continue
        if runs and link.goes_on(runs[-1][-1]):
            runs[-1].append(link)
        else:
            runs.append([link])
    runs = [run for run in runs if len(run) > 1]
    for run in runs:
        _replace(network, run)
    return [[str(link.layer.target) for link in run] for run in runs]


def unstacked(network: fx.GraphModule) -> fx.GraphModule:
    """A copy with the layers of each stack by themselves, NAME.0, NAME.1, ..., each with its shuffle and activation."""
    network = copy.deepcopy(network)
    for node in list(network.graph.nodes):
        made = _module(network, node)
        if isinstance(made, GroupedStack):
            _unroll(network, node, made)
    network.graph.lint()
    network.recompile()
    return network


def _unroll(network: fx.GraphModule, node: fx.Node, made: GroupedStack) -> None:
    name, value = str(node.target), node.all_input_nodes[0]
    network.delete_submodule(name)
    biases = [None] * made.layers if made.bias is None else made.bias.detach().view(made.layers, -1)
    for number, (weight, bias) in enumerate(zip(made.weight.detach(), biases, strict=True)):
        with torch.device("meta"):
            layer = GroupedLinear(made.features, made.features, made.groups, bias is not None)
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        act = _MODULES[made.activation]()
        shuffle = ChannelPermutation(made.features, made.features // made.groups, -1)
        for path, module in (
            (f"{name}.{number}_in", shuffle),
            (f"{name}.{number}", layer),
            (f"{name}.{number}_act", act),
        ):
            network.add_submodule(path, module.train(made.training))
            with network.graph.inserting_before(node):
                value = network.graph.call_module(path, (value,))
            value.meta["scope"] = node.meta.get("scope", "")
    node.replace_all_uses_with(value)
    network.graph.erase_node(node)


def _link(network: fx.GraphModule, node: fx.Node) -> _Link | None:
    """The link whose layer the node is."""
    layer = _module(network, node)
    if not isinstance(layer, GroupedLinear) or layer.in_features != layer.out_features or len(node.users) != 1:
        return None
    (before,), (behind,) = node.all_input_nodes, node.users
    shuffle = _module(network, before)
    if not isinstance(shuffle, ChannelPermutation) or shuffle.dim != -1 or len(before.users) != 1:
        return None
    if shuffle.rows != layer.weight.shape[1]:
        return None
    made = _module(network, behind)
    activation = _NAMES.get(type(made)) if made is not None else called(behind).rstrip("_")
    if activation not in ACTIVATIONS or len(behind.all_input_nodes) != 1:
        return None
    return _Link(before, node, behind, activation, layer)


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _replace(network: fx.GraphModule, run: list[_Link]) -> None:
    first, last, layers = run[0], run[-1], [link.grouped for link in run]
    with torch.device("meta"):  # draws no random numbers
        made = GroupedStack(
            layers[0].out_features, layers[0].groups, len(run), first.activation, layers[0].bias is not None
        )
    made.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
    if made.bias is not None:
        made.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers if layer.bias is not None]))
    name = str(first.layer.target)
    network.add_submodule(name, made.train(layers[0].training))
    with network.graph.inserting_before(first.shuffle):
        node = network.graph.call_module(name, first.shuffle.args)
    node.meta["scope"] = first.layer.meta.get("scope", "")
    last.act.replace_all_uses_with(node)
    for link in reversed(run):
        for old in (link.act, link.layer, link.shuffle):
            network.graph.erase_node(old)
