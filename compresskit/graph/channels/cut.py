"""Surgery on channels: a network without some of them, and a layer that reads a selection of its inputs."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.channels.resize import fix_numbers, resize, resize_norm, resize_slice, take
from compresskit.graph.channels.walk import Channels
from compresskit.graph.format.table import shared_tensors
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.operations import TRANSPOSED, calls_of
from compresskit.graph.shapes import node_shapes
from compresskit.shapes import Shape

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
    fix_numbers(network, channels.numbers)
    given = {
        (f"{layer}.bias", 0): atoms
        for layer, atoms in channels.writes.items()
        if getattr(network.get_submodule(layer), "bias", None) is not None
    }
    names = {name: own for own in shared_tensors(network) for name in own}
    for (name, dim), atoms in (channels.slots | given).items():
        kept, own = alive[atoms], names.get(name, [name])
        if not bool(kept.any()):
            raise UnsupportedModelError(f"{name}: none of its {len(atoms)} channels would be left; keep one at least")
        if not bool(kept.all()) and name == next(one for one in own if (one, dim) in channels.slots | given):
            take(network, own, dim, kept.nonzero(as_tuple=True)[0])
    for path in {name.rpartition(".")[0] for name, _ in channels.slots}:
        _update_options(network.get_submodule(path))
    for node in list(network.graph.nodes):
        _fit(network, node, channels, alive)
    network.graph.lint()
    network.recompile()
    return network


def _fit(network: fx.GraphModule, node: fx.Node, channels: Channels, alive: Tensor) -> None:
    """What is written into a call or a module without tensors, made to fit what is left."""
    name = node.name
    if name in channels.norms:
        norm = channels.norms[name]
        resize_norm(network, node, alive[norm.atoms], norm.dim)
    elif name in channels.channel_norms:
        resize_norm(network, node, alive[channels.channel_norms[name]], 1)
    if name in channels.slices:
        place, atoms = channels.slices[name]
        resize_slice(node, place, alive[atoms])
    if name in channels.scales and not all(bool(alive[atoms].all()) for atoms in channels.sums[name].values()):
        node.kwargs = {**node.kwargs, "scale": channels.scales[name]}
    if name in channels.sizes:
        resize(network, node, [alive[atoms] for atoms in channels.sizes[name]])
    elif name in channels.selections:
        _renumber(network, node, alive[channels.selections[name]])


def select_inputs(network: fx.GraphModule, kept: Mapping[str, Tensor]) -> fx.GraphModule:
    """Copy of `network` in which some layers read only part of their inputs, selected before them.

    kept: by layer, which is a linear layer or a convolution of one group that is called once: (n,) int64, increasing.
    """
    network = copy.deepcopy(network)
    for layer, inputs in kept.items():
        _select(network, layer, inputs)
    network.graph.lint()
    network.recompile()
    return network


def _select(network: fx.GraphModule, layer: str, kept: Tensor) -> None:
    (node,) = calls_of(network, layer)
    module = network.get_submodule(layer)
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    take(network, [f"{layer}.weight"], 1, kept)
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


def selections(network: fx.GraphModule, input_shape: Shape) -> list[tuple[int, int]]:
    """(inputs, kept) of every selection in the network."""
    shapes = node_shapes(network, input_shape)
    found = []
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target is torch.index_select:
            source, dim, _ = node.args
            found.append((shapes[source.name][dim], shapes[node.name][dim]))
    return found


def _update_options(module: nn.Module) -> None:
    """The constructor's options, from the shapes of the tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, TRANSPOSED):
        _update_transposed(module)
    elif isinstance(module, _CONVOLUTIONS):
        outputs = len(module.weight)
        if module.groups == module.in_channels > 1:  # depthwise: a group for each channel
            module.groups = outputs // (module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = outputs, module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _update_transposed(module: Any) -> None:
    inputs = len(module.weight)
    if module.groups == module.in_channels > 1:
        module.groups = inputs
    module.in_channels, module.out_channels = inputs, module.weight.shape[1] * module.groups


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
