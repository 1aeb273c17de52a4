"""nn.MultiheadAttention as layers that may have any number of heads and of positions in them."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_NAMES = ("query", "key", "value")
Add = Callable[[str, nn.Module, fx.Node], fx.Node]  # (name below the layer's path, layer, input) -> output


def write_out(network: fx.GraphModule, node: fx.Node, heads: int) -> None:
    """In the network itself: the projections as linear layers, and attention between them.

    node: of a layer without masks, whose tensors may have been cut: in_proj_weight (3 H D, C), out_proj.weight
    (C', H D). heads: H. Where query, key and value are one value, PATH.in_proj makes them, else PATH.query and so on.
    """
    path, graph = str(node.target), node.graph
    module = network.get_submodule(path)
    assert isinstance(module, nn.MultiheadAttention)
    given = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
    sources: list[Any] = [given[one] for one in _NAMES]
    network.delete_submodule(path)
    network.add_submodule(path, nn.Module())
    before = node.prev

    def add(name: str, layer: nn.Module, value: fx.Node) -> fx.Node:
        network.add_submodule(f"{path}.{name}", layer.train(module.training))
        return graph.call_module(f"{path}.{name}", (value,))

    with graph.inserting_before(node):
        projected = _projected(graph, add, module, sources)
        split = (0, 2, 1, 3) if module.batch_first else (1, 2, 0, 3)
        query, key, value = (
            graph.call_method("permute", (graph.call_method("unflatten", (one, -1, (heads, -1))), *split))
            for one in projected
        )
        mixed = _attention(graph, add, module, (query, key, value))
        joined = graph.call_method("permute", (mixed, *((0, 2, 1, 3) if module.batch_first else (2, 0, 1, 3))))
        merged = graph.call_method("flatten", (joined, 2))
        out = add("out_proj", _linear(module.out_proj.weight, module.out_proj.bias), merged)
    for user in list(node.users):
        user.replace_all_uses_with(out)
        graph.erase_node(user)
    made = before.next
    while made is not node:
        made.meta["scope"] = node.meta.get("scope", "")
        made = made.next
    graph.erase_node(node)


def _projected(graph: fx.Graph, add: Add, module: nn.MultiheadAttention, sources: list[fx.Node]) -> list[fx.Node]:
    """Query, key and value (.., H D)."""
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if sources[0] is sources[1] is sources[2]:
        parts = graph.call_method("chunk", (add("in_proj", _linear(weight, bias), sources[0]), 3, -1))
        return [graph.call_function(getitem, (parts, place)) for place in range(3)]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    layers = [_linear(*pair) for pair in zip(weight.chunk(3), biases, strict=True)]
    return [add(name, layer, source) for name, layer, source in zip(_NAMES, layers, sources, strict=True)]


def _attention(graph: fx.Graph, add: Add, module: nn.MultiheadAttention, values: tuple[fx.Node, ...]) -> fx.Node:
    """Of query, key and value (N, H, positions, D), scaled as for the positions that heads had at first."""
    query, key, value = values
    scale = float(module.head_dim**-0.5)
    if not module.dropout:
        return graph.call_function(F.scaled_dot_product_attention, values, {"scale": scale})
    turned = graph.call_method("transpose", (key, -2, -1))
    logits = graph.call_function(torch.matmul, (graph.call_method("mul", (query, scale)), turned))
    weights = add("dropout", nn.Dropout(module.dropout), graph.call_method("softmax", (logits, -1)))
    return graph.call_function(torch.matmul, (weights, value))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer
