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
    """Mean squared difference as a share of the mean variance of the expected values of a channel, along `dim`: ().

    Where there is no such dimension, all values are of one channel.
    """
    return _share(found, expected, channel_totals(expected, dim))


def mean_relative_error(found: Any, expected: Any) -> Tensor:
    """The mean of `relative_error` over the tensors of two values of the same structure: each counts alike."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return torch.stack([relative_error(one, other) for one, other in pairs]).mean()


class Spread:
    """How much values of one structure vary: the mean variance of a channel of each tensor, over all that were added.

    An error as a share of that is the same mean however samples come in batches; `mean_relative_error` is not.
    """

    def __init__(self) -> None:
        self._totals: list[Tensor] = []

    def add(self, value: Any) -> None:
        """Raises ValueError for a tensor of other channels than the one before it in its place."""
        added = [channel_totals(tensor) for tensor in tensors_of(value)]
        before = self._totals or [torch.zeros_like(total) for total in added]
        for total, more in zip(before, added, strict=True):
            if total.shape != more.shape:
                raise ValueError(
                    f"a tensor of the outputs has {total.shape[1]} channels (dimension 1) on one batch and "
                    f"{more.shape[1]} on another, so that no variance of a channel can be told"
                )
        self._totals = [total + more for total, more in zip(before, added, strict=True)]

    def error(self, found: Any, expected: Any) -> Tensor:
        """The mean over the tensors of the mean squared difference as a share of how much they vary: ()."""
        parts = zip(tensors_of(found), tensors_of(expected), self._totals, strict=True)
        return torch.stack([_share(*part) for part in parts]).mean()


def channel_totals(values: Tensor, dim: int = 1) -> Tensor:
    """(3, channels) float64: how many values each channel along `dim` has, their sum and the sum of their squares.

    Where there is no such dimension, all values are of one channel.
    """
    flat = values.reshape(1, -1) if values.ndim < 2 else values.movedim(dim, 0).flatten(1)
    flat = flat.double()
    sums = flat.sum(1)
    return torch.stack([torch.full_like(sums, flat.shape[1]), sums, flat.square().sum(1)])


def _share(found: Tensor, expected: Tensor, totals: Tensor) -> Tensor:
    """Mean squared difference as a share of the totals' variance; where that is small, of a share of their square."""
    counts, sums, squares = totals
    variance, square = (squares - sums.square() / counts).sum() / counts.sum(), squares.sum() / counts.sum()
    scale = torch.maximum(variance, CONSTANT * square)
    error = (found - expected).square().mean()
    known = scale > torch.finfo(scale.dtype).tiny ** 0.5  # else all are 0, and nothing is a share of that
    return torch.where(known, error / torch.where(known, scale, 1.0), 0.0)
