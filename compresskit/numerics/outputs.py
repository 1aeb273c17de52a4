"""What networks return, of any structure: how far two of them are apart, and copies of what is in them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

CONSTANT = 1e-3  # variance that values count as having at least, as a share of their mean square


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of floating point in lists, tuples and dicts, in their order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with every tensor changed; what is none stays."""
    return pytree.tree_map_only(Tensor, change, value)


def doubled(value: Any) -> Any:
    """With tensors of floating point in float64."""
    return mapped(lambda one: one.double() if one.is_floating_point() else one, value)


def largest_difference(found: Any, expected: Any) -> float:
    """The largest absolute difference of two values of the same structure; 0 where they hold no numbers."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return max((float((one - other).abs().max()) for one, other in pairs if one.numel()), default=0.0)


def relative_error(found: Tensor, expected: Tensor, dim: int = 1) -> Tensor:
    """Mean squared difference as a share of the mean variance of the expected values of a channel, along `dim`."""
    others = [axis for axis in range(expected.ndim) if axis != dim % expected.ndim]
    variance = (expected - expected.mean(others or None, keepdim=True)).square().mean()
    scale = torch.maximum(variance, CONSTANT * expected.square().mean())  # of channels that hardly vary
    error = (found - expected).square().mean()
    known = scale > torch.finfo(scale.dtype).tiny ** 0.5  # else all are 0, and nothing is a share of that
    return torch.where(known, error / torch.where(known, scale, 1.0), 0.0)


def mean_relative_error(found: Any, expected: Any) -> Tensor:
    """The mean of `relative_error` over the tensors of two values of the same structure: each counts alike.

    Channels lie along dimension 1; where there is none, all values are of one channel.
    """
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return torch.stack([relative_error(one, other, min(1, max(other.ndim - 1, 0))) for one, other in pairs]).mean()
