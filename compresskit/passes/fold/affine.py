"""An affine map by channel, taken into the weight and bias of a layer behind or before it, in place."""

from typing import Any

from torch import Tensor, nn

from compresskit.graph.layers.grouped import GroupedLinear
from compresskit.graph.operations import TRANSPOSED

DENSE = (nn.Linear, GroupedLinear)


def behind(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """layer(x) -> scale layer(x) + shift, both float64 (outputs,): rows s W, and s b + t.

    Weights are (outputs, inputs / groups, *taps), of transposed convolutions (inputs, outputs / groups, *taps).
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, TRANSPOSED):
        by_group = weight.unflatten(0, (layer.groups, -1))  # groups, inputs, outputs, *taps
        factors = scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = (by_group * factors).flatten(0, 1)
    else:
        scaled = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    bias = shift if layer.bias is None else scale * layer.bias.detach() + shift
    _put(layer, scaled, bias)


def before(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """layer(x) -> layer(scale x + shift), both float64 (inputs,): columns W s, and b + W t summed over all taps."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().double()
    by_group = weight.unflatten(0, (groups, -1))  # groups, outputs, inputs, *taps
    ones = [1] * (weight.ndim - 2)
    scaled = by_group * scale.view(groups, 1, -1, *ones)
    moved = (by_group * shift.view(groups, 1, -1, *ones)).flatten(2).sum(2).flatten()
    _put(layer, scaled.flatten(0, 1), moved if layer.bias is None else moved + layer.bias.detach())


def _put(layer: Any, weight: Tensor, bias: Tensor) -> None:
    dtype, wanted = layer.weight.dtype, layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.to(dtype), wanted)
    if layer.bias is not None or bool(bias.any()):
        layer.bias = nn.Parameter(bias.to(dtype), wanted)
