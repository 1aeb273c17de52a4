"""Batches that go through a network in parts, whose gradients add up to the batch's before the optimiser's one step."""

from typing import Any

from torch import Tensor


def micro_batches(inputs: Any, targets: Any, largest: int) -> list[tuple[Any, Any]]:
    """The batch in parts of `largest` samples at most, whose sizes differ by at most one.

    No part has a single sample, of which a batch norm has no variance, unless all have: three samples stay together
    where `largest` is two. inputs: one tensor or a tuple of them, perhaps V views of all samples, one behind the other,
    of which a part has its own.
    """
    parts = -(-len(targets) // largest)
    if largest > 1:
        parts = max(1, min(parts, len(targets) // 2))
    if parts == 1:
        return [(inputs, targets)]
    pieces = targets.tensor_split(parts)
    if isinstance(inputs, Tensor):
        return list(zip(_split(inputs, len(targets), parts), pieces, strict=True))
    several = zip(*(_split(one, len(targets), parts) for one in inputs), strict=True)
    return list(zip(several, pieces, strict=True))


def _split(inputs: Tensor, samples: int, parts: int) -> list[Tensor]:
    views = inputs.unflatten(0, (-1, samples))
    return [part.flatten(0, 1) for part in views.tensor_split(parts, 1)]
