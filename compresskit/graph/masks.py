"""Masks of a network's parameters, by their names: bool, of the parameter's shape, True = keep."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compresskit.graph.counting import Counts

Masks = Mapping[str, Tensor]


def apply_masks(network: nn.Module, masks: Masks) -> None:
    """Sets what is masked to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = network.get_parameter(name)
            parameter.mul_(mask.to(parameter.device))


def kept(counts: Counts, masks: Masks) -> tuple[int, int]:
    """Parameters that masks keep, and multiply-accumulates by weights that they keep; of one sample."""
    gone = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    macs = [
        layer.macs if mask is None else layer.macs * int(mask.sum()) // mask.numel()
        for layer in counts.layers
        for mask in [masks.get(f"{layer.name}.weight")]
    ]
    return counts.parameters - gone, sum(macs)
