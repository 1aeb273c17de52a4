"""Masks of weights: units that stay, each a single weight or a whole kernel, by what they are worth.

weight: (out, in / groups, *taps). A mask is bool and of the weight's shape, True = keep. A linear layer has single
weights only; a kernel is the taps that one output has of one input.
"""

import torch
from torch import Tensor


def taps_of(weight: Tensor, *, kernels: bool) -> int:
    """Weights of a unit."""
    return weight[0, 0].numel() if kernels else 1


def magnitude(weight: Tensor, order: float, *, kernels: bool) -> Tensor:
    """(units,) |w| of each weight, or (mean |w|^order)^(1/order) of each kernel, float64.

    The mean, not the sum, so that kernels of different sizes compare.
    """
    rows = weight.reshape(-1, taps_of(weight, kernels=kernels)).double()
    norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1) / rows.shape[1] ** (1 / order)
    return norms


def units_left(mask: Tensor, *, kernels: bool) -> Tensor:
    """(units,) number of weights of each unit that a mask keeps, or the sum of what else is given for each weight."""
    return mask.reshape(-1, taps_of(mask, kernels=kernels)).sum(1)


def of_units(kept: Tensor, weight: Tensor, *, kernels: bool) -> Tensor:
    """The mask of a weight of which these units, (units,) bool, stay whole."""
    return kept[:, None].expand(-1, taps_of(weight, kernels=kernels)).reshape(weight.shape)
