"""Surgery on channels: a network without some of them, and a layer that reads a selection of its inputs."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.channels.walk import Channels
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.operations import NORMS, called
from compresskit.graph.shapes import node_shapes

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cut(network: fx.GraphModule, channels: Channels, alive: Tensor) -> fx.GraphModule:
    """Copy of `network` without the atoms that are not alive, from every tensor that they own a slot of.

    channels: of this network, or of what it was before some of its layers were given biases. alive: (n_atoms,) bool.
    Where the layers that read an atom have zeros for it, the function stays as it was. Raises ValueError where a frozen
    atom is to go, UnsupportedModelError where a layer would be left without channels.
    """
    alive = alive.cpu()
    for atom, reason in channels.frozen.items():
        if not bool(alive[atom]):
            raise ValueError(f"atom {atom} must stay: {reason}")
    network = copy.deepcopy(network)
    given = {
        (f"{layer}.bias", 0): atoms
        for layer, atoms in channels.writes.items()
        if getattr(network.get_submodule(layer), "bias", None) is not None
    }
    for (name, dim), atoms in (channels.slots | given).items():
        kept = alive[atoms]
        if not bool(kept.any()):
            raise UnsupportedModelError(f"{name}: none of its {len(atoms)} channels would be left; keep one at least")
        if not bool(kept.all()):
            _slice(network, name, dim, kept.nonzero(as_tuple=True)[0])
    for path in {name.rpartition(".")[0] for name, _ in channels.slots}:
        _update_options(network.get_submodule(path))
    for node in network.graph.nodes:
        if node.name in channels.sizes:
            _resize(network, node, [alive[atoms] for atoms in channels.sizes[node.name]])
        elif node.name in channels.selections:
            _renumber(network, node, alive[channels.selections[node.name]])
    network.graph.lint()
    network.recompile()
    return network


def select_inputs(network: fx.GraphModule, layer: str, kept: Tensor) -> fx.GraphModule:
    """Copy of `network` in which `layer` reads only some of its inputs, selected before it.

    layer: a linear layer or a convolution of one group that is called once. kept: (n,) int64, increasing.
    """
    network = copy.deepcopy(network)
    (node,) = (n for n in network.graph.nodes if n.op == "call_module" and n.target == layer)
    module = network.get_submodule(layer)
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    _slice(network, f"{layer}.weight", 1, kept)
    _update_options(module)
    name = f"{layer.replace('.', '_')}_inputs"
    while hasattr(network, name):
        name += "_"
    network.register_buffer(name, kept.to(module.weight.device))
    with network.graph.inserting_before(node):
        indices = network.graph.get_attr(name)
        dim = -1 if isinstance(module, nn.Linear) else 1
        selection = network.graph.call_function(torch.index_select, (node.args[0], dim, indices))
    for new in (indices, selection):
        new.meta["scope"] = node.meta.get("scope", "")
    node.args = (selection, *node.args[1:])
    network.graph.lint()
    network.recompile()
    return network


def selections(network: fx.GraphModule, input_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(inputs, kept) of every selection in the network."""
    shapes = node_shapes(network, input_shape)
    found = []
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target is torch.index_select:
            source, dim, _ = node.args
            found.append((shapes[source.name][dim], shapes[node.name][dim]))
    return found


def _slice(network: fx.GraphModule, name: str, dim: int, kept: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    module = network.get_submodule(path)
    tensor = getattr(module, attribute)
    smaller = tensor.detach().index_select(dim, kept.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, tensor.requires_grad)
    setattr(module, attribute, smaller)


def _update_options(module: nn.Module) -> None:
    """The constructor's options, from the shapes of the tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _CONVOLUTIONS):
        outputs = len(module.weight)
        if module.groups == module.in_channels > 1:  # depthwise: a group for each channel
            module.groups = outputs // (module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = outputs, module.weight.shape[1] * module.groups
    elif isinstance(module, NORMS):
        tensor = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(tensor)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _resize(network: fx.GraphModule, node: fx.Node, results: list[Tensor]) -> None:
    """Sizes that are written into the arguments, made to fit what is left of each result. results: bool, by place."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, nn.Unflatten):
            module.unflattened_size = tuple(_sizes(module.unflattened_size, results[0], module.dim))
        return
    name = called(node)
    if name in ("split", "split_with_sizes"):
        _resize_split(node, results)
    elif name in ("view", "reshape", "expand", "unflatten"):
        _resize_shape(node, name, results[0])


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
    """The sizes from dimension `offset` on, which is one of what is reshaped. Where a reshape splits channels, those
    that are computed (half of the channels, say) become numbers as well: what is cut need not be in proportion."""
    sizes, splits = list(written), sum(size > 1 for size in alive.shape) > 1
    first = offset % (alive.ndim - len(sizes) + 1)
    for place, size in enumerate(sizes):
        left = _left(alive, place + first)
        told = size > 1 if isinstance(size, int) else splits and isinstance(size, fx.Node)
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


def _renumber(network: fx.GraphModule, node: fx.Node, alive: Tensor) -> None:
    """The indices of a selection or a permutation, counted among the channels that are left."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        assert isinstance(module, ChannelPermutation)
        left = ChannelPermutation.of(_counted(module.indices().cpu(), alive), module.dim)
        network.add_submodule(str(node.target), left.to(next(network.parameters()).device))
        return
    name = str(node.all_input_nodes[-1].target)
    index = network.get_buffer(name)
    path, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(path), attribute, _counted(index, alive.to(index.device)))


def _counted(index: Tensor, alive: Tensor) -> Tensor:
    """What is left of the indices, each the number of its channel among those alive."""
    return (alive.cumsum(0) - 1)[index[alive[index]]]
