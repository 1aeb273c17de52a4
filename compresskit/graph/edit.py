"""Surgery: a new network in which one layer stands where a chain was, or two where one was."""

import copy
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compresskit.graph.chains import Chain
from compresskit.graph.operations import calls_of
from compresskit.models.parts.initialisation import Initialisation, initialise, seeded


def replace_chain(
    network: fx.GraphModule,
    chain: Chain,
    layer: nn.Module,
    *,
    flatten: bool = False,
    pad: Sequence[int] = (),
    bias: Tensor | None = None,
) -> fx.GraphModule:
    """Copy of `network` with `layer` in the place of `chain`, under the name `chain.name`.

    flatten: the source is flattened behind its batch dimension before the layer. pad: of the source, as
    torch.nn.functional.pad takes it (negative crops), where no padding of the layer would align it. bias: added to what
    the layer gives, as a parameter of its own beside it.
    Modules that nothing calls any more are dropped.
    """
    network = copy.deepcopy(network)
    graph = network.graph
    nodes = {node.name: node for node in graph.nodes}
    target, value = nodes[chain.target], nodes[chain.source]
    scope = target.meta.get("scope", "")
    network.add_submodule(chain.name, layer)
    with graph.inserting_before(target):
        if flatten:
            value = graph.call_function(torch.flatten, (value, 1))
            value.meta["scope"] = scope
        if pad:
            value = graph.call_function(functional.pad, (value, list(pad)))
            value.meta["scope"] = scope
        fused = graph.call_module(chain.name, (value,))
        fused.meta["scope"] = scope
        if bias is not None:
            fused = graph.call_function(operator.add, (fused, graph.get_attr(_beside(network, chain.name, bias))))
            fused.meta["scope"] = scope
    target.replace_all_uses_with(fused)
    for name in reversed(chain.nodes):
        graph.erase_node(nodes[name])
    _drop_unread(network)
    network.delete_all_unused_submodules()
    graph.lint()
    network.recompile()
    return network


def _drop_unread(network: fx.GraphModule) -> None:
    """Drops parameters that the graph read and nothing uses any more, such as the bias map of a layer that is gone."""
    reads = [node for node in network.graph.nodes if node.op == "get_attr"]
    kept = {str(node.target) for node in reads if node.users}
    for node in reads:
        if not node.users:
            network.graph.erase_node(node)
            path, _, leaf = str(node.target).rpartition(".")
            if str(node.target) not in kept and leaf in (owner := network.get_submodule(path))._parameters:
                delattr(owner, leaf)


def bias_maps(network: nn.Module) -> set[str]:
    """Names of the parameters that hold a bias for each position beside a layer NAME without one: NAME_bias."""
    bare = {name for name, module in network.named_modules() if getattr(module, "bias", 0) is None}
    return {name for name, _ in network.named_parameters() if name.removesuffix("_bias") in bare}


def _beside(network: fx.GraphModule, name: str, bias: Tensor) -> str:
    """The path of a new parameter beside the module `name`."""
    path, _, leaf = name.rpartition(".")
    network.get_submodule(path).register_parameter(f"{leaf}_bias", nn.Parameter(bias))
    return f"{name}_bias"


def replace_by_two(network: fx.GraphModule, name: str, first: nn.Module, second: nn.Module) -> fx.GraphModule:
    """Copy of `network` with two layers, one behind the other, in the place of layer `name`: `name.0` and `name.1`."""
    network = copy.deepcopy(network)
    put_two(network, name, first, second)
    return network


def put_two(network: fx.GraphModule, name: str, first: nn.Module, second: nn.Module) -> None:
    """`replace_by_two` in the network itself, for callers that have copied it already."""
    (node,) = calls_of(network, name)
    network.delete_submodule(name)
    for suffix, layer in (("0", first), ("1", second)):
        network.add_submodule(f"{name}.{suffix}", layer)
    node.target = f"{name}.0"
    with network.graph.inserting_after(node):
        behind = network.graph.call_module(f"{name}.1")
    behind.meta["scope"] = node.meta.get("scope", "")
    node.replace_all_uses_with(behind)
    behind.args = (node,)
    network.graph.lint()
    network.recompile()


def reset_parameters(network: fx.GraphModule, seed: int, how: Initialisation = "torch") -> list[str]:
    """Draws each layer of `network` anew, in place, from `seed`; as torch makes its layers, or as `how` says.

    Returns the names of the parameters that no layer draws (a bare class token, say), which stay as they were.
    """
    drawn: set[int] = set()
    with seeded(seed, network):
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {id(parameter) for parameter in module.parameters()}
        initialise(network, how)
    for name in (maps := bias_maps(network)):
        nn.init.zeros_(network.get_parameter(name))
    undrawn = [name for name, parameter in network.named_parameters() if id(parameter) not in drawn]
    return [name for name in undrawn if name not in maps]
