"""Sparse layers whose masks are blocks, as grouped layers between two orders of channels."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.permute import Uses, insert_permutation, settle
from compresskit.graph.layers.grouped import GroupedLinear
from compresskit.graph.masks import Masks
from compresskit.graph.operations import calls_of
from compresskit.numerics.sparse.block_diagonal import find_blocks
from compresskit.numerics.sparse.ramanujan import Blocks
from compresskit.passes.initialise.stack import stack

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_CONV_OPTIONS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")


@dataclass(frozen=True)
class GroupedLayer:
    """A layer that was replaced. shape: of its weight before. blocks: the outputs and inputs, by the numbers that they
    had, of each of its groups, in their order."""

    name: str
    shape: tuple[int, ...]
    blocks: Blocks

    @property
    def groups(self) -> int:
        return len(self.blocks.rows)


@dataclass(frozen=True)
class Grouped:
    """The network with grouped layers, the masks that are left, and by layer the reasons why others stayed.

    stacks: layers, by name, that one `GroupedStack` runs, which has the name of the first of them. Between two of the
    layers, channels may lie in another order than before.
    """

    network: fx.GraphModule
    masks: dict[str, Tensor]
    layers: list[GroupedLayer]
    skipped: dict[str, str]
    stacks: list[list[str]]


def group(network: fx.GraphModule, masks: Masks) -> Grouped:
    """The same function with the weights that masks keep, where these are blocks up to the order of channels.

    W = P_out^T blockdiag(W_1, ..., W_g) P_in, each block c x d and full; of a convolution each entry is a kernel.
    Layers keep their names; the orders are `name_in` and `name_out`, unless they have met another layer's order or its
    weights, and become one with them. Square layers of a chain, alike in blocks and activation, become a stack.
    Source: SAO, section IV-A.
    """
    network = copy.deepcopy(network)
    uses, left = Uses(network), dict(masks)
    layers, skipped, permutations = list[GroupedLayer](), dict[str, str](), list[fx.Node]()
    for parameter, mask in masks.items():
        name = parameter.removesuffix(".weight")
        try:
            blocks = _blocks(network, name, mask, masks, uses)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        layers.append(GroupedLayer(name, tuple(mask.shape), blocks))
        permutations += _replace(network, name, blocks)
        del left[parameter]
    for node in permutations:
        settle(network, node, left, uses)
    stacks = stack(network)
    if layers:
        _allow_any_strides(network)
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return Grouped(network, left, layers, skipped, stacks)


def _blocks(network: fx.GraphModule, name: str, mask: Tensor, masks: Masks, uses: Uses) -> Blocks:
    """Of the layer's mask. Raises ValueError with the reason why the layer must stay as it is."""
    layer = dict(network.named_modules()).get(name)
    if not isinstance(layer, _LAYERS):
        raise ValueError("it is no weight of a linear layer or of a convolution in one or two dimensions")
    if uses.calls[name] != 1:
        raise ValueError(f"it is called {uses.calls[name]} times")
    if uses.shared(name):
        raise ValueError("its weights are read by something else, too")
    if getattr(layer, "groups", 1) > 1:
        raise ValueError("it has groups already")
    if f"{name}.bias" in masks:
        raise ValueError("its bias is masked, too")
    taps = mask.flatten(1).view(*mask.shape[:2], -1)
    kept = taps.any(2)
    if not kept.equal(taps.all(2)):
        raise ValueError("its mask takes single weights out of kernels")
    blocks = find_blocks(kept)
    if len(blocks.rows) == 1:
        raise ValueError("its mask keeps every weight")
    return blocks


def _replace(network: fx.GraphModule, name: str, blocks: Blocks) -> list[fx.Node]:
    """Puts the grouped layer in the place of the layer. Returns the permutations around it."""
    layer = network.get_submodule(name)
    assert isinstance(layer, _LAYERS)
    (node,) = calls_of(network, name)
    rows, columns = (side.to(layer.weight.device) for side in (blocks.rows, blocks.columns))
    network.add_submodule(name, _grouped(layer, rows, columns))
    dim = -1 if isinstance(layer, nn.Linear) else 1
    before = insert_permutation(node, columns.flatten(), dim, "_in")
    return before + insert_permutation(node, rows.flatten().argsort(), dim, "_out")


def _grouped(layer: nn.Linear | nn.Conv1d | nn.Conv2d, rows: Tensor, columns: Tensor) -> nn.Module:
    """rows: (groups, c). columns: (groups, d)."""
    groups, biased = len(rows), layer.bias is not None
    made: nn.Module
    with torch.device("meta"):  # draws no random numbers
        if isinstance(layer, nn.Linear):
            made = GroupedLinear(layer.in_features, layer.out_features, groups, biased)
        else:
            options = {name: getattr(layer, name) for name in _CONV_OPTIONS}
            made = type(layer)(**options, groups=groups, bias=biased)
    kept = layer.weight.detach()[rows[:, :, None], columns[:, None, :]]
    made.weight = nn.Parameter(kept.flatten(0, 1), layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[rows.flatten()], layer.bias.requires_grad)
    return made.train(layer.training)


def _allow_any_strides(network: fx.GraphModule) -> None:
    """What `view` refuses, `reshape` copies: grouped linear layers leave their batch along the last dimension."""
    for node in network.graph.nodes:
        if (
            node.op == "call_method"
            and node.target == "view"
            and not any(isinstance(a, torch.dtype) for a in node.args)
        ):
            node.target = "reshape"
