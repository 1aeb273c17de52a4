"""Means of maps by position, which `channels: document` takes moments about."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from compresskit.graph.capture import capture
from compresskit.graph.shapes import evaluating
from compresskit.numerics.least_squares.fusion import MeanMaps
from compresskit.passes.fuse.fusible import Fusible
from compresskit.passes.moments import Batches


def mean_maps(network: fx.GraphModule, fusibles: Sequence[Fusible], batches: Batches) -> dict[str, MeanMaps]:
    """By name of the request, for those chains whose stand-in has a bias for each position; one pass over the data,
    none where there is no such chain. Raises ValueError where `batches` are empty."""
    mapped = [fusible for fusible in fusibles if len(fusible.bias_shape) > 1]
    if not mapped:
        return {}
    names = sorted({end for fusible in mapped for end in (fusible.chain.source, fusible.chain.target)})
    values, images = capture(network, names), 0
    sums: dict[str, Tensor] = {}
    with torch.inference_mode(), evaluating(values):
        for inputs, _ in batches:
            images += len(inputs)
            for name, value in zip(names, values(inputs), strict=True):
                found = value.sum(0, dtype=torch.float64)
                sums[name] = sums[name] + found if name in sums else found
    if not images:
        raise ValueError("no samples: means need one batch at least")
    means, found = {name: total / images for name, total in sums.items()}, {}
    for fusible in mapped:
        assert fusible.request.patches is not None  # only convolutions have maps
        ends = means[fusible.chain.source], means[fusible.chain.target]
        found[fusible.request.name] = MeanMaps(*ends, fusible.request.patches)
    return found
