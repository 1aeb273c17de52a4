"""Batch norms in eval mode, which are affine, taken into the layers that they stand behind or before."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.permute import Uses
from compresskit.graph.masks import Masks
from compresskit.graph.operations import NORMS, TRANSPOSED, value_users
from compresskit.graph.shapes import node_shapes
from compresskit.passes.fold.affine import DENSE, before, behind
from compresskit.shapes import Shape

_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_LAYERS = (*DENSE, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


@dataclass(frozen=True)
class Folded:
    """network: without the norms that were folded. layers: those that took them in, by norm. left: why others stay."""

    network: fx.GraphModule
    layers: dict[str, list[str]]
    left: dict[str, str]


class _Stays(Exception):
    """The reason why a norm stays."""


def fold_norms(network: fx.GraphModule, input_shape: Shape, masks: Masks) -> Folded:
    """The same function in eval mode with fewer batch norms; `network` stays as it was.

    A norm is x -> s x + t by channel, s = gamma / sqrt(var + eps) and t = beta - s mean. Behind a layer, which nothing
    else reads, it scales the rows of its weight by s, and the bias b becomes s b + t. Before layers it scales their
    columns, and the bias becomes b + W t, which is right where padding is not zeros, or t is. Weights are computed in
    float64. Masks of weights stay right, since zeros stay zeros.
    """
    network = copy.deepcopy(network)
    sites, layers, left = _Sites(network, input_shape, masks), dict[str, list[str]](), dict[str, str]()
    for node in [node for node in network.graph.nodes if sites.is_norm(node)]:
        name, norm = str(node.target), sites.module(node)
        try:
            scale, shift = sites.affine(node)
            try:
                found = [sites.layer_behind_which(node)]
                behind(sites.module(found[0]), scale, shift)
            except _Stays as reason:
                found = sites.layers_before_which(node, shift, str(reason))
                for layer in found:
                    before(sites.module(layer), scale, shift)
        except _Stays as reason:
            left[name] = str(reason)
            continue
        layers[name] = [*layers.get(name, []), *(str(layer.target) for layer in found)]
        node.replace_all_uses_with(_source(node))
        network.graph.erase_node(node)
        if norm not in [sites.module(other) for other in network.graph.nodes]:
            network.delete_submodule(name)
    network.graph.lint()
    network.recompile()
    return Folded(network, layers, left)


class _Sites:
    """What stands around the norms of a network."""

    def __init__(self, network: fx.GraphModule, input_shape: Shape, masks: Masks) -> None:
        self._network, self._masks, self._uses = network, masks, Uses(network)
        self._modules = dict(network.named_modules(remove_duplicate=False))
        self._shapes = node_shapes(network, input_shape)

    def module(self, node: fx.Node) -> Any:
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def is_norm(self, node: fx.Node) -> bool:
        return isinstance(self.module(node), NORMS)

    def affine(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Scale and shift of a norm, float64. Raises _Stays where it has other ones for each batch, or masks."""
        norm, name = self.module(node), str(node.target)
        if norm.running_mean is None or norm.running_var is None:
            raise _Stays("it normalises by each batch, since it has no statistics")
        if any(mask.startswith(f"{name}.") for mask in self._masks):
            raise _Stays("it has masks of its own")
        if len(node.args) != 1 or node.kwargs:
            raise _Stays("it is called with more than its input")
        scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.detach()
        shift = -scale * norm.running_mean
        return scale, shift if norm.bias is None else shift + norm.bias.detach()

    def layer_behind_which(self, norm: fx.Node) -> fx.Node:
        """The call of the layer whose outputs the norm alone reads. Raises _Stays."""
        node, reader = _source(norm), norm
        while True:
            if others := sorted(_named(other) for other in value_users(node) - {reader}):
                raise _Stays(f"{_named(node)} before it is also read by {', '.join(others)}")
            if not isinstance(self.module(node), _PASSING):
                break
            node, reader = _source(node), node
        self._check_layer(node, "before it")
        if isinstance(self.module(node), DENSE) and len(self._shapes[node.name]) != 2:
            raise _Stays(f"it normalises another dimension than that of the outputs of {node.target}")
        return node

    def layers_before_which(self, norm: fx.Node, shift: Tensor, reason: str) -> list[fx.Node]:
        """The calls of all layers that read the norm's values. Raises _Stays, with the reason why not behind one."""
        found, waiting = list[fx.Node](), list(value_users(norm))
        while waiting:
            node = waiting.pop()
            if isinstance(self.module(node), _PASSING):
                waiting += value_users(node)
                continue
            try:
                self._check_layer(node, "behind it")
                self._check_columns(node, norm, shift)
            except _Stays as other:
                raise _Stays(f"{reason}; {other}") from None
            found.append(node)
        return found

    def _check_columns(self, node: fx.Node, norm: fx.Node, shift: Tensor) -> None:
        layer = self.module(node)
        if isinstance(layer, TRANSPOSED):
            raise _Stays(f"{node.target} behind it is transposed, and its margins see fewer inputs")
        if isinstance(layer, DENSE):
            if len(self._shapes[norm.name]) != 2:
                raise _Stays(f"{node.target} behind it reads another dimension than it normalises")
        elif _pads_zeros(layer) and bool(shift.any()):
            raise _Stays(f"{node.target} behind it pads with zeros, which the norm's shift does not reach")

    def _check_layer(self, node: fx.Node, where: str) -> None:
        """Raises _Stays where this is no layer that can be changed for the norm alone."""
        layer, name = self.module(node), str(node.target)
        if type(layer) not in _LAYERS:
            kind = type(layer).__name__ if layer is not None else _named(node)
            raise _Stays(f"{kind} {where} is no convolution or linear layer")
        if not self._uses.once(name):
            raise _Stays(f"{name} {where} is called more than once, or shares its weights")
        if f"{name}.bias" in self._masks:
            raise _Stays(f"the bias of {name} {where} is masked")
        if layer.weight.dtype not in (torch.float32, torch.float64):
            raise _Stays(f"{name} {where} has weights of {str(layer.weight.dtype).removeprefix('torch.')}")


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _pads_zeros(layer: Any) -> bool:
    """Whether any output sees zeros that are no input."""
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    sides: Sequence[int] = layer.kernel_size if isinstance(layer.padding, str) else [p + 1 for p in layer.padding]
    return any(side > 1 for side in sides)


def _named(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the input"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
