"""Low-rank factors in place of what thinning left, where they are smaller (document 2.3)."""

from math import prod

import torch
from torch import Tensor, fx, nn

from compresskit.graph.chains import Weighted, weighted
from compresskit.graph.edit import replace_by_two
from compresskit.numerics.least_squares.low_rank import Factorisation, factorise
from compresskit.numerics.moments.matrix import dense
from compresskit.passes.reconstruct.chaining import Draft, kept_inputs
from compresskit.passes.reconstruct.options import LowRank
from compresskit.passes.reconstruct.readers import Plan, Reader


def factorise_layers(
    network: fx.GraphModule, plan: Plan, draft: Draft, options: LowRank | None
) -> tuple[fx.GraphModule, dict[str, int]]:
    """`network`, cut already, with two layers in place of each that they make smaller; and their rank, by layer.

    A linear layer becomes two, a convolution one to `rank` channels and one of 1x1. Layers that are no site's, and
    grouped convolutions, stay.
    """
    ranks: dict[str, int] = {}
    if options is None:
        return network, ranks
    for site in plan.sites:
        for reader in site.readers:
            if reader.request.groups == 1:
                layer = weighted(network, reader.layer)
                kept = kept_inputs(reader, draft.choices[site.name])
                found = _factors(layer, reader, kept, draft, options)
                if _size(found) < layer.weight.numel() + (0 if layer.bias is None else len(layer.bias)):
                    network = replace_by_two(network, reader.layer, *_layers(layer, found))
                    ranks[reader.layer] = len(found.first)
    return network, ranks


def _factors(layer: Weighted, reader: Reader, kept: Tensor, draft: Draft, options: LowRank) -> Factorisation:
    moments = draft.moments[reader.layer]
    features = kept.repeat_interleave(prod(layer.weight.shape[2:])).to(moments.cyx.device)
    cxx = dense(moments.cxx[0])[features][:, features]
    weight = layer.weight.detach().to(cxx).flatten(1)
    bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias.detach().to(cxx)
    variance = float((weight @ cxx * weight).sum())
    return factorise(weight, bias, moments.mean_x[0, features], cxx, options.error * variance)


def _size(found: Factorisation) -> int:
    return found.first.numel() + found.second.numel() + len(found.bias)


def _layers(layer: Weighted, found: Factorisation) -> tuple[nn.Module, nn.Module]:
    """The two layers with the factors as weights, of the layer's type and device."""
    rank = len(found.first)
    if isinstance(layer, nn.Linear):
        pair: tuple[Weighted, Weighted] = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features),
        )
    else:
        kind = type(layer)
        settings = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        pair = (
            kind(layer.in_channels, rank, layer.kernel_size, bias=False, **settings),  # type: ignore[arg-type]
            kind(rank, layer.out_channels, 1),
        )
    first, second = (module.to(layer.weight.device, layer.weight.dtype) for module in pair)
    with torch.no_grad():
        first.weight.copy_(found.first.view_as(first.weight))
        second.weight.copy_(found.second.view_as(second.weight))
        assert second.bias is not None
        second.bias.copy_(found.bias)
    return first, second
