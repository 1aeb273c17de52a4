"""Networks whose forward returns a structure, or other values in training mode: one graph that gives both."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.symbolic import same_call
from compresskit.graph.format.table import named_tensors, tensor_of
from compresskit.graph.layers.outputs import Outputs

PLAIN = "return tensors in lists, tuples and dicts, or choose one of its values with model.output"


def keep_forms(network: fx.GraphModule, in_training: fx.GraphModule | None) -> None:
    """Lets `network`, a trace in eval mode, return what `in_training` returns while it is in training mode.

    in_training: a trace of the same module in training mode; None where eval mode's values serve both. Its calls that
    `network` makes, too, are made once: those are the same calls of the same values. A network that returns the same
    tensor in both modes stays as it is. Raises UnsupportedModelError for structures that a checkpoint cannot hold.
    """
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    forms = [_plain(network, output.args[0])]
    if in_training is not None:
        with network.graph.inserting_before(output):
            found = _plain(network, _added(network, in_training))
        forms += [found] if found != forms[0] else []
    if len(forms) == 1 and isinstance(forms[0], fx.Node):
        return
    path = "outputs"
    while hasattr(network, path):
        path += "_"
    network.add_submodule(path, Outputs().train(network.training))
    with network.graph.inserting_before(output):
        last = network.graph.call_module(path, tuple(forms))
    last.meta["scope"] = ""
    output.args = (last,)


def _added(network: fx.GraphModule, other: fx.GraphModule) -> Any:
    """What `other` returns, of nodes of `network`, which gets the calls that it lacks."""
    copies: dict[fx.Node, fx.Node] = {}
    left: dict[str, list[fx.Node]] = {}  # by call, those that no call of the other stands for yet
    for node in network.graph.nodes:
        left.setdefault(same_call(node, lambda source: source.name), []).append(node)
    for node in other.graph.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], copies.__getitem__)
        alike = left.get(same_call(node, lambda source: copies[source].name))
        if alike and _same_tensor(network, other, node):
            copies[node] = alike.pop(0)
            continue
        copies[node] = network.graph.node_copy(node, copies.__getitem__)
        copies[node].target = _held(network, other, node)
        copies[node].meta = dict(node.meta)
    return None


def _same_tensor(network: fx.GraphModule, other: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what the node reads is the same in both: constants of two traces may share a name."""
    if node.op != "get_attr":
        return True
    tensor, found = (tensor_of(each, str(node.target)) for each in (network, other))
    return tensor is found or (tensor.shape == found.shape and bool(torch.equal(tensor, found)))


def _held(network: fx.GraphModule, other: fx.GraphModule, node: fx.Node) -> Any:
    """What the node is to name in `network`, which gets the layer or tensor where it lacks it."""
    name = str(node.target)
    if node.op == "call_module" and name not in dict(network.named_modules(remove_duplicate=False)):
        network.add_submodule(name, other.get_submodule(name))
    elif node.op == "get_attr":
        known = dict(named_tensors(network))
        while name in known:
            name += "_"
        path, _, attribute = name.rpartition(".")
        if path and path not in dict(network.named_modules(remove_duplicate=False)):
            network.add_submodule(path, nn.Module())
        tensor, owner = tensor_of(other, str(node.target)), network.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(attribute, tensor)
        else:
            owner.register_buffer(attribute, tensor)
        return name
    return node.target


def _plain(network: fx.GraphModule, value: Any) -> Any:
    """The structure in the types that a checkpoint holds. Raises UnsupportedModelError for others."""
    if type(value) is tuple:
        return tuple(_plain(network, one) for one in value)
    if isinstance(value, list):
        return [_plain(network, one) for one in value]
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return {key: _plain(network, one) for key, one in value.items()}
    if value is None or isinstance(value, fx.Node | bool | int | float | str):
        return value
    raise UnsupportedModelError(f"{type(network).__name__}: forward returns a {type(value).__name__}; {PLAIN}")
