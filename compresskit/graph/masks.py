"""Masks of a network's parameters, by their names: bool, of the parameter's shape, True = keep."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compresskit.graph.counting import Counts, Use

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
    saved = sum(_saved(use, mask) for name, mask in masks.items() for use in counts.uses.get(name, ()))
    return counts.parameters - gone, counts.macs - saved


def prices(counts: Counts, name: str, shape: tuple[int, ...]) -> Tensor:
    """float64 of the weight's shape: the multiply-accumulates of each entry of a parameter, in all calls."""
    found = torch.zeros(shape, dtype=torch.float64)
    for use in counts.uses.get(name, ()):
        entries = use.of(found)
        entries += use.macs / entries.numel()
    return found


def of_layer(layer: str, masks: Masks) -> list[Tensor]:
    """Masks of the parameters of a module, or of the parameter of that name."""
    return [mask for name, mask in masks.items() if name == layer or name.startswith(f"{layer}.")]


def _saved(use: Use, mask: Tensor) -> int:
    entries = use.of(mask)
    return round(use.macs * (entries.numel() - int(entries.sum())) / entries.numel())
