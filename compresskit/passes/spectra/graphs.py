"""Graphs of sparse layers: what masks keep, or the blocks of layers that run in groups."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresskit.graph.masks import Masks
from compresskit.graph.weights import Weight, parameter_of
from compresskit.numerics.sparse.ramanujan import Graph, graph


def sparse_layers(network: nn.Module, weights: Sequence[Weight], masks: Masks) -> dict[str, Tensor]:
    """By layer, (outputs, inputs) bool: whether any tap between the two is kept; of layers with a mask or in groups.

    Of a transposed convolution the two are exchanged, which leaves the eigenvalues as they are.
    """
    found: dict[str, Tensor] = {}
    for weight in weights:
        mask = masks.get(_parameter(network, weight.name))
        if mask is None and weight.groups == 1:
            continue
        kept = (
            torch.ones(weight.tensor.shape[:2], dtype=torch.bool)
            if mask is None
            else mask.cpu().reshape(*mask.shape[:2], -1).any(2)
        )
        found[weight.name] = torch.block_diag(*kept.chunk(weight.groups)).bool()
    return found


def graphs(layers: dict[str, Tensor]) -> dict[str, Graph]:
    """Of each layer; equal masks, which may be a thousand, are decomposed once."""
    known: dict[bytes, Graph] = {}
    found = {}
    for name, mask in layers.items():
        key = repr(tuple(mask.shape)).encode() + mask.numpy().tobytes()
        if key not in known:
            known[key] = graph(mask)
        found[name] = known[key]
    return found


def _parameter(network: nn.Module, layer: str) -> str:
    try:
        return parameter_of(network, layer)
    except AttributeError:  # a layer of a stack, which has no masks
        return layer
