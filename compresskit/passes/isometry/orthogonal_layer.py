"""The dense orthogonal layer that a layer is compared with."""

from math import sqrt
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from compresskit.graph.layers.grouped import GroupedLinear
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.numerics.orthogonal.matrices import delta, orthogonal


def orthogonal_layer(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """A layer with the options and the bias of `layer`, all connections, and weights drawn anew.

    They are a random (semi-)orthogonal matrix, of a convolution at its middle tap, times the root mean square singular
    value ||W||_F / sqrt(min(outputs, inputs)) of the layer.
    """
    made, scale = _dense(layer)
    outputs, inputs, *taps = made.weight.shape
    with torch.no_grad():
        made.weight.copy_(delta(scale * orthogonal(outputs, inputs, generator), tuple(taps)))
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    found: nn.Module = made.requires_grad_(False)
    return found


def _dense(layer: Any) -> tuple[Any, float]:
    """A layer with all connections, its values not set, and the root mean square singular value."""
    weight = layer.weight.detach()
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear | GroupedLinear):
        sides = layer.in_features, layer.out_features
        made: Any = skip_init(nn.Linear, *sides, **options)
        return made, float(weight.norm()) / sqrt(min(sides))
    sides = layer.in_channels, layer.out_channels
    if isinstance(layer, SkewConvolution):
        kind: type[nn.Module] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(layer.kernel_size) - 1]
        options |= {"padding": tuple(k // 2 for k in layer.kernel_size), "padding_mode": layer.padding_mode}
        return skip_init(kind, *sides, layer.kernel_size, **options), 1.0
    options |= {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    return skip_init(type(layer), *sides, layer.kernel_size, **options), float(weight.norm()) / sqrt(min(sides))
