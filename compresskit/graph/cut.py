"""Surgery on channels: a network without some of them, and a layer that reads a selection of its inputs."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.channels import Channels
from compresskit.graph.shapes import node_shapes

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def cut(network: fx.GraphModule, channels: Channels, alive: Tensor) -> fx.GraphModule:
    """Copy of `network` without the atoms that are not alive, from every tensor that they own a slot of.

    channels: of this network. alive: (n_atoms,) bool. Where the layers that read an atom have zeros for it, the
    function stays as it was. Raises ValueError where a frozen atom is to go, UnsupportedModelError where a layer would
    be left without channels.
    """
    alive = alive.cpu()
    for atom, reason in channels.frozen.items():
        if not bool(alive[atom]):
            raise ValueError(f"atom {atom} must stay: {reason}")
    network = copy.deepcopy(network)
    for (name, dim), atoms in channels.slots.items():
        kept = alive[atoms]
        if not bool(kept.any()):
            raise UnsupportedModelError(f"{name}: none of its {len(atoms)} channels would be left; keep one at least")
        if not bool(kept.all()):
            _slice(network, name, dim, kept.nonzero(as_tuple=True)[0])
    for path in {name.rpartition(".")[0] for name, _ in channels.slots}:
        _update_options(network.get_submodule(path))
    for node in network.graph.nodes:
        if node.name in channels.sizes:
            _resize(node, [alive[atoms] for atoms in channels.sizes[node.name]])
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
    elif isinstance(module, _NORMS):
        tensor = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(tensor)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _resize(node: fx.Node, results: list[Tensor]) -> None:
    """Sizes that are written into the arguments, made to fit what is left of each result. results: bool, by place."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    arguments: list[Any] = list(node.args)
    if name in ("split", "split_with_sizes"):
        dim: Any = node.kwargs.get("dim", arguments[2] if len(arguments) > 2 else 0)
        parts = [_left(alive, dim) for alive in results]
        if all(part is not None for part in parts):
            arguments[1] = parts[0] if isinstance(arguments[1], int) else parts
            node.args = tuple(arguments)
    elif name in ("view", "reshape", "expand", "unflatten"):
        (alive,) = results
        first = 1 if name == "unflatten" else 0
        written = arguments[1 + first :]
        nested = len(written) == 1 and isinstance(written[0], list | tuple)
        sizes = list(written[0] if nested else written)
        offset = arguments[1] % alive.ndim if name == "unflatten" else 0
        for place, size in enumerate(sizes):
            left = _left(alive, place + offset)
            if isinstance(size, int) and size > 1 and left is not None:
                sizes[place] = left
        node.args = (*arguments[: 1 + first], *([tuple(sizes)] if nested else sizes))


def _left(alive: Tensor, dim: int) -> int | None:
    """How many channels are left along `dim`; None where that is no dimension of channels."""
    if alive.shape[dim] == 1:
        return None
    others = [d for d in range(alive.ndim) if d != dim % alive.ndim]
    return int((alive.amax(others) if others else alive).sum())


def _renumber(network: fx.GraphModule, node: fx.Node, alive: Tensor) -> None:
    """The indices of a selection, counted among the channels that are left."""
    name = str(node.all_input_nodes[-1].target)
    index = network.get_buffer(name)
    places = (alive.cumsum(0) - 1).to(index.device)
    path, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(path), attribute, places[index[alive.to(index.device)[index]]])
