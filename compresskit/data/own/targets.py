"""Targets of any structure: what the user's collate made of them, with the number of samples that they are of."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

OWN = "own"  # the task whose targets these are


@dataclass(frozen=True)
class Targets:
    """value: of a batch of `count` samples. Only tensors in lists, tuples and dicts are moved and copied."""

    value: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device, non_blocking: bool = False) -> "Targets":
        return self._each(lambda one: one.to(device, non_blocking=non_blocking))

    def cpu(self) -> "Targets":
        return self._each(Tensor.cpu)

    def clone(self) -> "Targets":
        return self._each(Tensor.clone)

    def parts(self) -> list[Any]:
        """What tells these targets from others: tensors, and whatever else is in them."""
        leaves = pytree.tree_leaves(self.value)
        return [torch.from_numpy(leaf) if _is_numbers(leaf) else leaf for leaf in leaves]

    def _each(self, change: Any) -> "Targets":
        return replace(self, value=pytree.tree_map_only(Tensor, change, self.value))


def _is_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def is_structured(target: Any) -> bool:
    """Whether a sample's target is something that no other task takes: several tensors, rows of boxes, a mapping."""
    if isinstance(target, str | bytes | np.str_ | np.bytes_):
        return False
    try:
        value = torch.as_tensor(np.asarray(target))
    except (TypeError, ValueError, RuntimeError):
        return True
    return value.ndim > 2 or (value.ndim == 2 and value.is_floating_point()) or value.numel() == 0
