"""Tensors and sizes of a network, made to fit what is left of its channels."""

from collections.abc import Sequence
from operator import getitem
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from compresskit.graph.channels.write_out import write_out
from compresskit.graph.layers.windows import WindowAttention
from compresskit.graph.operations import called


def take(network: fx.GraphModule, names: Sequence[str], dim: int, kept: Tensor) -> None:
    """Leaves those indices of a tensor, along one dimension. names: all that it has. kept: (n,) int64."""
    owners = [
        (network.get_submodule(path), attribute) for path, _, attribute in (name.rpartition(".") for name in names)
    ]
    tensor = getattr(*owners[0])
    smaller = tensor.detach().index_select(dim, kept.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, tensor.requires_grad)
    for module, attribute in owners:
        setattr(module, attribute, smaller)


def fix_numbers(network: fx.GraphModule, numbers: dict[str, Any]) -> None:
    """Writes out numbers that a network computes from how many channels there are: what it computes with them does not
    change when channels go. numbers: by node; of several, None for those that stay what they are."""
    graph = network.graph
    nodes = [node for node in graph.nodes if node.name in numbers]
    for number in nodes:
        for user in list(number.users):
            if user.name not in numbers and not (called(user) == "getitem" and user.args[0] is number):
                written = _written(graph, number, user, numbers[number.name])
                _replace(user, number, written)
    for number in reversed(nodes):
        if not number.users:
            graph.erase_node(number)


def _replace(user: fx.Node, number: fx.Node, written: Any) -> None:
    def chosen(node: fx.Node) -> Any:
        return written if node is number else node

    user.args, user.kwargs = map_arg(user.args, chosen), map_arg(user.kwargs, chosen)


def _written(graph: fx.Graph, number: fx.Node, user: fx.Node, value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    written: list[Any] = []
    with graph.inserting_before(user):
        for place, size in enumerate(value):
            if size is None:
                size = graph.call_function(getitem, (number, place))
                size.meta["scope"] = user.meta.get("scope", "")
            written.append(size)
    return tuple(written)


def resize_slice(node: fx.Node, place: int, alive: Tensor) -> None:
    """The range of channels that a node takes, among those that are left. place: of the slice among the indices.
    alive: (channels,) bool."""
    source, index = node.args
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    start, stop, _ = items[place].indices(len(alive))
    items[place] = slice(int(alive[:start].sum()), int(alive[:stop].sum()))
    node.args = (source, tuple(items) if isinstance(index, tuple) else items[0])


def resize(network: fx.GraphModule, node: fx.Node, results: list[Tensor]) -> None:
    """results: bool, which channels are left of each result of the node."""
    if node.op == "call_module":
        _resize_module(network, node, results[0])
        return
    name = called(node)
    if name in ("split", "split_with_sizes"):
        _resize_split(node, results)
    elif name in ("view", "reshape", "expand", "unflatten"):
        _resize_shape(node, name, results[0])


def _resize_module(network: fx.GraphModule, node: fx.Node, alive: Tensor) -> None:
    module: Any = network.get_submodule(str(node.target))
    if isinstance(module, nn.Unflatten):
        module.unflattened_size = tuple(_sizes(module.unflattened_size, alive, module.dim))
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight.shape != (3 * module.embed_dim, module.embed_dim):
            write_out(network, node, int(alive.any(1).sum()))
    elif isinstance(module, WindowAttention):
        module.scale = module.scale or alive.shape[1] ** -0.5
        module.num_heads = int(alive.any(1).sum())


def resize_norm(network: fx.GraphModule, node: fx.Node, alive: Tensor, dim: int) -> None:
    """The number of channels that a norm was told. alive: (channels,) bool, those along dimension `dim`."""
    before, left = len(alive), int(alive.sum())
    if node.op == "call_module":
        module: Any = network.get_submodule(str(node.target))
        if isinstance(module, nn.GroupNorm):
            module.num_groups = left if module.num_groups == before else module.num_groups
            module.num_channels = left
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.normalized_shape = _with(module.normalized_shape, dim, left)
        else:
            module.num_features = left
    elif called(node) == "group_norm":
        groups = node.kwargs.get("num_groups", node.args[1] if len(node.args) > 1 else None)
        if groups == before:
            _set_argument(node, 1, "num_groups", left)
    elif called(node) in ("layer_norm", "rms_norm"):
        shape: Any = node.kwargs.get("normalized_shape", node.args[1] if len(node.args) > 1 else None)
        _set_argument(node, 1, "normalized_shape", _with(shape, dim, left))


def _set_argument(node: fx.Node, place: int, name: str, value: Any) -> None:
    if name in node.kwargs:
        node.kwargs = {**node.kwargs, name: value}
    else:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])


def _with(sizes: Any, place: int, size: int) -> tuple[int, ...]:
    found = list(sizes)
    found[place] = size
    return tuple(found)


def _resize_shape(node: fx.Node, name: str, alive: Tensor) -> None:
    """The sizes may be arguments of their own, one sequence, or given by keyword."""
    arguments: list[Any] = list(node.args)
    keyword = next((key for key in ("shape", "size", "sizes") if key in node.kwargs), None)
    offset: Any = 0
    if name == "unflatten":
        offset = node.kwargs["dim"] if "dim" in node.kwargs else arguments[1]
    if keyword:
        given: Any = node.kwargs[keyword]
        node.kwargs = {**node.kwargs, keyword: tuple(_sizes(given, alive, offset))}
        return
    first = 2 if name == "unflatten" else 1
    written = arguments[first:]
    nested = len(written) == 1 and isinstance(written[0], list | tuple)
    sizes = _sizes(written[0] if nested else written, alive, offset)
    node.args = (*arguments[:first], *([tuple(sizes)] if nested else sizes))


def _sizes(written: Sequence[Any], alive: Tensor, offset: int) -> list[Any]:
    """The sizes from dimension `offset` on, which is one of what is reshaped. Those that are computed (half of the
    channels, say) become numbers as well: what is cut need not be in proportion."""
    sizes = list(written)
    first = offset % (alive.ndim - len(sizes) + 1)
    for place, size in enumerate(sizes):
        left = _left(alive, place + first)
        told = size > 1 if isinstance(size, int) else isinstance(size, fx.Node)
        if told and left is not None:
            sizes[place] = left
    return sizes


def _resize_split(node: fx.Node, results: list[Tensor]) -> None:
    keyword = next((key for key in node.kwargs if key.startswith("split_size")), None)
    written: Any = node.kwargs[keyword] if keyword else node.args[1]
    dim: Any = node.kwargs.get("dim", node.args[-1] if len(node.args) > 2 else 0)
    parts = [_left(alive, dim) for alive in results]
    if all(part is None for part in parts):
        return  # of positions
    new: Any = [int(alive.any()) if part is None else part for part, alive in zip(parts, results, strict=True)]
    if isinstance(written, int) and len(set(new)) == 1:
        new = new[0]
    if keyword:
        node.kwargs = {**node.kwargs, keyword: new}
    else:
        node.args = (node.args[0], new, *node.args[2:])


def _left(alive: Tensor, dim: int) -> int | None:
    """How many channels are left along `dim`; None where that is no dimension of channels."""
    if alive.shape[dim] == 1:
        return None
    others = [d for d in range(alive.ndim) if d != dim % alive.ndim]
    return int((alive.amax(others) if others else alive).sum())
