"""Numbers that a network computes from the sizes of its activations, and what they count."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compresskit.graph.channels.labels import compact, repeats


class Count(int):
    """A whole number. labels: of the channels that are counted in it. samples: whether the batch size is in it."""

    labels: tuple[Tensor, ...] = ()
    samples = False


class Ratio(float):
    """As a count, of numbers that are not whole."""

    labels: tuple[Tensor, ...] = ()
    samples = False


def sizes_of(labels: Tensor) -> torch.Size:
    """Of the activation with these labels; a size along which they vary counts channels, the first one samples."""
    return torch.Size([_size(labels, dim) for dim in range(labels.ndim)])


def computed(value: Any, arguments: Any) -> Any:
    """What a call makes of numbers counts what they count."""
    if type(value) not in (int, float):
        return value
    found = list(counts(arguments))
    labels = tuple(one for count in found for one in count.labels)
    return _counted(value, labels, any(count.samples for count in found)) if found else value


def counts(value: Any) -> Iterator[Count | Ratio]:
    """Those among the arguments of a call."""
    if isinstance(value, Count | Ratio):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from counts(one)
    elif isinstance(value, dict):
        yield from counts(list(value.values()))
    elif isinstance(value, slice):
        yield from counts([value.start, value.stop, value.step])


def fixed(value: Any) -> Any:
    """A number as it is written into the call of a network that lost channels; None for those that count no
    channels, or samples as well (then the channels stay)."""
    if isinstance(value, tuple):
        return tuple(fixed(one) for one in value)
    if isinstance(value, Count | Ratio) and value.labels and not value.samples:
        return int(value) if isinstance(value, Count) else float(value)
    return None


def _size(labels: Tensor, dim: int) -> Any:
    varies = labels.shape[dim] > 1 and not repeats(labels, dim)
    return _counted(labels.shape[dim], (compact(labels),) if varies else (), dim == 0)


def _counted(value: Any, labels: tuple[Tensor, ...], samples: bool) -> Any:
    if not labels and not samples:
        return value
    made = (Count if isinstance(value, int) else Ratio)(value)
    made.labels, made.samples = labels, samples
    return made
