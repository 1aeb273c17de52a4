"""What of a network can be compared: the outputs of its layers, norms, activations, sums and blocks."""

from collections.abc import Collection
from typing import Literal

from torch import fx, nn

from compresskit.graph.operations import INSTANCE_NORMS, NORMS, called
from compresskit.graph.selectors import KINDS

Outputs = Literal["layers", "norms", "activations", "sums", "blocks"]

_NORMS = (*NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LAYERS = tuple(kind for kinds in KINDS.values() for kind in kinds)
_ACTIVATIONS = frozenset(
    """
    relu relu6 leaky_relu leakyrelu prelu rrelu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh
    softplus softsign
    """.split()
)
_NORM_CALLS = frozenset("batch_norm instance_norm layer_norm group_norm rms_norm".split())
_SUMS = frozenset({"add", "add_", "iadd"})


def outputs_of(network: fx.GraphModule, kinds: Collection[Outputs]) -> dict[str, str]:
    """By name, the node of each output of one of `kinds`, in the order of the network.

    Names are those of modules, with the number of the call behind a further one; of blocks (submodules that hold
    others), whose output is what their last call gives; and of nodes, where a function is called.
    """
    last = {block: node for node in network.graph.nodes for block in _blocks_around(network, node)}
    of_block = {node: block for block, node in last.items()}  # of blocks that end alike, the innermost
    found: dict[str, str] = {}
    calls: dict[str, int] = {}
    for node in network.graph.nodes:
        name = node.name
        if node.op == "call_module":
            name = str(node.target)
        calls[name] = calls.get(name, 0) + 1  # a function's node may have the name of a module
        name += f" ({calls[name]})" if calls[name] > 1 else ""
        if _kind(network, node) in kinds:
            found[name] = node.name
        if "blocks" in kinds and node in of_block:
            found.setdefault(of_block[node], node.name)
    return found


def _kind(network: fx.GraphModule, node: fx.Node) -> Outputs | None:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, _LAYERS):
            return "layers"
        if isinstance(module, _NORMS):
            return "norms"
        return "activations" if type(module).__name__.lower() in _ACTIVATIONS else None
    if node.op not in ("call_function", "call_method"):
        return None
    name = called(node)
    if name in _NORM_CALLS:
        return "norms"
    if name in _SUMS and len(node.all_input_nodes) > 1:
        return "sums"
    return "activations" if name.rstrip("_") in _ACTIVATIONS else None


def _blocks_around(network: fx.GraphModule, node: fx.Node) -> list[str]:
    """The submodules with others in them that a call lies in, from the outermost to the innermost."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return []
    inside = str(node.target).rpartition(".")[0] if node.op == "call_module" else str(node.meta.get("scope", ""))
    parts = inside.split(".") if inside else []
    return [".".join(parts[: place + 1]) for place in range(len(parts))]
