"""Plain layers in the place of what holds weights in other ways, so that channels may go and layers be solved again:
attention as one module, and weights that forward computes of parameters, as standardised convolutions do."""

import copy
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compresskit.graph.channels.walk import find_channels
from compresskit.graph.channels.write_out import write_out
from compresskit.graph.format.table import shared_names, tensor_of
from compresskit.graph.operations import called
from compresskit.shapes import Shape

_LAYERS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    **{f"conv{n}d": getattr(nn, f"Conv{n}d") for n in (1, 2, 3)},
}
_PRODUCTS = {"matmul": (1,), "addmm": (2, 0)}  # places of weight (in, out) and bias
_RESAMPLED = frozenset({"interpolate"})  # position embeddings, for another size


def plain_layers(network: fx.GraphModule, input_shape: Shape) -> tuple[fx.GraphModule, list[str]]:
    """A copy without attention as one module and without computed weights, and the names of what changed; the network
    itself if nothing does.

    It gives the same outputs in eval mode: equal ones, but for attention, which sums in another order. Attention that
    has masks, or returns its weights, stays.
    """
    written = [n for n in network.graph.nodes if n.op == "call_module" and _is_attention(network, n)]
    names: list[str] = []
    if written:
        writes = find_channels(network, input_shape).writes
        names = [str(node.target) for node in written if f"{node.target}.out_proj" in writes]
        network = copy.deepcopy(network)
        for node in list(network.graph.nodes):
            if node.op == "call_module" and node.target in names:
                write_out(network, node, int(network.get_submodule(str(node.target)).num_heads))  # type: ignore[arg-type]
        network.recompile()
    network, computed = plain_weights(network)
    return network, names + computed


def _is_attention(network: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(network.get_submodule(str(node.target)), nn.MultiheadAttention)


def plain_weights(network: fx.GraphModule) -> tuple[fx.GraphModule, list[str]]:
    """A copy in which no layer computes its weight or has it as an argument, and the names of what changed; the network
    itself if nothing does.

    Computed are weights and biases of convolutions and linear layers, and resampled tables, that depend on parameters
    alone. Products with a parameter (in, out) become linear layers, too. The copy gives the same outputs in eval mode,
    but for the rounding of these products; trained further, it trains the weights as they are.
    """
    made = _from_parameters(network)
    shared = shared_names(network)
    layers = [node for node in network.graph.nodes if node not in made and _weights(node)]
    found = [n for n in layers if _computes(n, made) or _is_alone(network, n, shared, made)]
    tables = [node for node in network.graph.nodes if node in made and _is_resampled(node, made)]
    if not found and not tables:
        return network, []
    values = _Values(network, made).values
    changed = copy.deepcopy(network)
    nodes = {node.name: node for node in changed.graph.nodes}
    there = {nodes[node.name] for node in made}
    names = [_put_layer(changed, nodes[node.name], values, there) for node in found]
    names += [_put_table(changed, nodes[node.name], values[node.name]) for node in tables]
    _drop_unread(changed)
    changed.graph.lint()
    changed.recompile()
    return changed, names


class _Values(fx.Interpreter):
    """Runs what depends on parameters alone."""

    def __init__(self, network: fx.GraphModule, made: set[fx.Node]) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.values: dict[str, Any] = {}
        with torch.no_grad():
            for node in network.graph.nodes:
                if node in made or node.op == "get_attr":
                    self.env[node] = self.run_node(node)
                    self.values[node.name] = self.env[node]


def _from_parameters(network: fx.GraphModule) -> set[fx.Node]:
    """Calls that read tensors of the network and numbers, and nothing that depends on the input."""
    made: set[fx.Node] = set()
    for node in network.graph.nodes:
        sources = node.all_input_nodes
        if node.op in ("call_function", "call_method") and sources:
            if all(source.op == "get_attr" or source in made for source in sources):
                made.add(node)
    return made


def _weights(node: fx.Node) -> list[fx.Node]:
    """Weight and bias of a call that is a layer; none of others."""
    if node.op == "call_function" and node.target in _FUNCTIONS:
        given = [*node.args[1:3], node.kwargs.get("weight"), node.kwargs.get("bias")]
    elif called(node) in _PRODUCTS and not node.kwargs:
        given = [node.args[place] for place in _PRODUCTS[called(node)]]
    else:
        return []
    return [source for source in given if isinstance(source, fx.Node)]


def _computes(node: fx.Node, made: set[fx.Node]) -> bool:
    return called(node) not in _PRODUCTS and any(source in made for source in _weights(node))


def _is_alone(network: fx.GraphModule, node: fx.Node, shared: Container[str], made: Container[fx.Node]) -> bool:
    """Whether a call reads parameters as its weight and bias that nothing else does."""
    for source in (sources := _weights(node)):
        if source.op != "get_attr" or source.target in shared or _readers(network, source, made) != {node}:
            return False
    weight, *bias = (tensor_of(network, str(source.target)) for source in sources)
    if not all(isinstance(tensor, nn.Parameter) for tensor in (weight, *bias)):
        return False
    if not node.args:
        return False
    linear = called(node) in _PRODUCTS or called(node) == "linear"
    return weight.ndim == 2 if linear else weight.ndim > 2 and all(tensor.ndim == 1 for tensor in bias)


def _is_resampled(node: fx.Node, made: set[fx.Node]) -> bool:
    """Whether it is the last of the calls that make a table, one of which resamples it."""
    if any(user in made for user in node.users):
        return False
    pending, seen = [node], {node}
    while pending:
        last = pending.pop()
        if called(last) in _RESAMPLED:
            return True
        before = [source for source in last.all_input_nodes if source not in seen]
        seen |= set(before)
        pending += before
    return False


def _put_layer(network: fx.GraphModule, node: fx.Node, values: dict[str, Any], made: Container[fx.Node]) -> str:
    """values: of the nodes that depend on parameters alone; made: those of them that are calls, of this network."""
    weights = _weights(node)
    tensors = [values[source.name] for source in weights]
    source = node.args[0]
    if called(node) in _PRODUCTS:  # of a weight (in, out)
        tensors[0], source = tensors[0].t(), node.args[_PRODUCTS[called(node)][0] - 1]
    options = _options(node, tensors[0])
    layer = _LAYERS.get(called(node), nn.Linear)(**options, bias=len(tensors) > 1, device="meta")
    for name, tensor, given in zip(("weight", "bias"), tensors, weights, strict=False):
        trained = given.op != "get_attr" or values[given.name].requires_grad
        whole = tensor.detach().clone(memory_format=torch.contiguous_format)
        layer._parameters[name] = nn.Parameter(whole, trained)
    path = _path(network, node, weights[0], made)
    network.add_submodule(path, layer)
    node.op, node.target, node.args, node.kwargs = "call_module", path, (source,), {}
    node.meta["scope"] = path.rpartition(".")[0]
    return path


def _options(node: fx.Node, weight: Tensor) -> dict[str, Any]:
    if weight.ndim == 2:
        return {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    groups = int(given.get("groups", 1))
    options: dict[str, Any] = {name: given[name] for name in ("stride", "padding", "dilation") if name in given}
    options = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in options.items()}
    sizes: dict[str, Any] = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0], "groups": groups}
    return {**sizes, "kernel_size": tuple(weight.shape[2:]), **options}


def _path(network: fx.GraphModule, node: fx.Node, weight: fx.Node, made: Container[fx.Node]) -> str:
    """Where the parameter lies that the weight is made of, if nothing else there is called or read, or a new name."""
    source = weight
    while source.op != "get_attr":
        source = source.all_input_nodes[0]
    home = str(source.target).rpartition(".")[0]
    there = [n for n in network.graph.nodes if f"{n.target}.".startswith(f"{home}.")]
    taken = any(n.op == "call_module" or (n.op == "get_attr" and _readers(network, n, made) != {node}) for n in there)
    if home and not taken:
        return home
    path = f"{node.meta.get('scope', '')}.{node.name}".removeprefix(".")
    while path in dict(network.named_modules()):
        path += "_"
    return path


def _readers(network: fx.GraphModule, tensor: fx.Node, made: Container[fx.Node]) -> set[fx.Node]:
    """What reads a tensor of the network, or what is computed of such tensors alone, next to activations. All nodes
    that read the tensor count."""
    seen = {n for n in network.graph.nodes if n.op == "get_attr" and n.target == tensor.target}
    pending, found = list(seen), set[fx.Node]()
    while pending:
        for user in pending.pop().users:
            if user in made and user not in seen:
                seen.add(user)
                pending.append(user)
            elif user not in made:
                found.add(user)
    return found


def _put_table(network: fx.GraphModule, node: fx.Node, value: Tensor) -> str:
    name = f"{node.name}_table"
    while hasattr(network, name):
        name += "_"
    network.register_parameter(name, nn.Parameter(value.detach().clone()))
    with network.graph.inserting_before(node):
        table = network.graph.get_attr(name)
    table.meta["scope"] = ""
    node.replace_all_uses_with(table)
    return name


def _drop_unread(network: fx.GraphModule) -> None:
    """Calls on parameters that nothing reads any more, and tensors that nothing does."""
    before = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    made = _from_parameters(network)
    for node in reversed(list(network.graph.nodes)):
        alone = node.op == "get_attr" or node in made
        if alone and not node.users:
            network.graph.erase_node(node)
    left = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    for name in before - left:
        path, _, attribute = name.rpartition(".")
        module = network.get_submodule(path)
        if type(module) not in _LAYERS.values() and hasattr(module, attribute):
            delattr(module, attribute)


_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
