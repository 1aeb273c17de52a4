"""Surgery on the order of channels: permutations around layers, which meet and merge, or vanish in weights."""

from collections import Counter
from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor, fx, nn

from compresskit.graph.format.table import shared_names, tensor_of
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.operations import ELEMENTWISE, ELEMENTWISE_MODULES, NORMS, SPATIAL, SPATIAL_MODULES, called

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Uses:
    """How often a network calls its modules and reads their tensors."""

    def __init__(self, network: fx.GraphModule) -> None:
        self._network = network
        self.calls = Counter(n.target for n in network.graph.nodes if n.op in ("call_module", "get_attr"))
        self._shared = shared_names(network)

    def shared(self, name: str) -> bool:
        """Whether a tensor of the module has another name or is read by a call."""
        tensors = [*self._network.get_submodule(name).state_dict()]
        return any(self.calls[own] or own in self._shared for own in (f"{name}.{tensor}" for tensor in tensors))

    def once(self, name: str) -> bool:
        """Whether what is written into the module's tensors is seen by one call alone."""
        return self.calls[name] == 1 and not self.shared(name)


def insert_permutation(node: fx.Node, order: Tensor, dim: int, suffix: str) -> list[fx.Node]:
    """The permutation of what a layer's node reads, or of what it returns, named after it; none if it does nothing.

    suffix: "_in" or "_out". order: (channels,) int64, on the layer's device.
    """
    if is_identity(order):
        return []
    graph, network = node.graph, node.graph.owning_module
    assert network is not None
    path, taken = f"{node.target}{suffix}", {name for name, _ in network.named_modules()}
    while path in taken:
        path += "_"
    network.add_submodule(path, ChannelPermutation.of(order, dim).to(order.device))
    with graph.inserting_before(node) if suffix == "_in" else graph.inserting_after(node):
        made = graph.call_module(path)
    made.meta["scope"] = node.meta.get("scope", "")
    if suffix == "_in":
        (source,) = node.all_input_nodes
        node.replace_input_with(source, made)
        made.args = (source,)
    else:
        node.replace_all_uses_with(made)
        made.args = (node,)
    return [made]


def settle(network: fx.GraphModule, node: fx.Node, masks: MutableMapping[str, Tensor], uses: Uses) -> None:
    """Takes a permutation, in place, to the next one or to a dense layer, where there is one.

    On the way may lie what gives the same in any order of channels, and batch norms, which are put in order, if each
    value has one reader. Two permutations become one in the place of the first (so that only what the activation
    behind it returns is kept for the backward pass) or none; a dense layer takes it into its weight and mask.
    """
    permutation, passed, value = _permutation(network, node), list[fx.Node](), node
    while len(value.users) == 1:
        (value,) = value.users
        module = network.get_submodule(str(value.target)) if value.op == "call_module" else None
        if isinstance(module, ChannelPermutation) and module.dim == permutation.dim:
            moved = module.indices()
            _merge(network, node, value)
        elif _is_dense(value, module, permutation.dim, uses):
            moved = permutation.indices().argsort()
            _reorder(network, f"{value.target}.weight", 1, moved, masks)
            _bypass(node)
        elif _treats_alike(value, module, permutation.dim, uses):
            passed.append(value)
            continue
        else:
            return
        _reorder_norms(network, passed, moved, masks)
        return


def is_identity(order: Tensor) -> bool:
    return order.equal(torch.arange(len(order), device=order.device))


def _permutation(network: fx.GraphModule, node: fx.Node) -> ChannelPermutation:
    module = network.get_submodule(str(node.target))
    assert isinstance(module, ChannelPermutation)
    return module


def _is_dense(user: fx.Node, module: nn.Module | None, dim: int, uses: Uses) -> bool:
    """Whether it reads all channels along that dimension, and its weight may be changed."""
    reads = (isinstance(module, nn.Linear) and dim == -1) or (
        isinstance(module, _CONVOLUTIONS) and dim == 1 and module.groups == 1
    )
    return reads and uses.once(str(user.target))


def _treats_alike(user: fx.Node, module: nn.Module | None, dim: int, uses: Uses) -> bool:
    """Whether it does the same to each channel, or, behind a convolution, to each plane; or is a batch norm."""
    if user.op == "output" or len(user.all_input_nodes) > 1:
        return False
    if module is None:
        return called(user) in ELEMENTWISE or (dim == 1 and called(user) in SPATIAL and called(user) != "pad")
    if isinstance(module, NORMS):
        return dim == 1 and uses.once(str(user.target))
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return False
    kind = type(module).__name__
    return kind in ELEMENTWISE_MODULES or (dim == 1 and kind in SPATIAL_MODULES)


def _merge(network: fx.GraphModule, first: fx.Node, second: fx.Node) -> None:
    """One permutation, in the place of the first, or none."""
    before, behind = (_permutation(network, node) for node in (first, second))
    device = next(network.parameters()).device
    order = before.indices().to(device)[behind.indices().to(device)]
    _bypass(second)
    if is_identity(order):
        _bypass(first)
    else:
        network.add_submodule(str(first.target), ChannelPermutation.of(order, before.dim).to(device))


def _reorder_norms(
    network: fx.GraphModule, nodes: Sequence[fx.Node], order: Tensor, masks: MutableMapping[str, Tensor]
) -> None:
    """Those batch norms that are among the nodes."""
    for node in nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, NORMS):
            for name, tensor in module.state_dict().items():
                if tensor.ndim:
                    _reorder(network, f"{node.target}.{name}", 0, order, masks)


def _reorder(network: fx.GraphModule, name: str, dim: int, order: Tensor, masks: MutableMapping[str, Tensor]) -> None:
    """Index i of a tensor, and of its mask, becomes what order[i] was."""
    tensor: Tensor = tensor_of(network, name)
    with torch.no_grad():
        tensor.copy_(tensor.index_select(dim, order.to(tensor.device)))
    if name in masks:
        masks[name] = masks[name].index_select(dim, order.to(masks[name].device))


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)
