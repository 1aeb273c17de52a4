"""What data tell of themselves before training: what cannot be meant is refused, what looks odd is noted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compresskit.errors import DataError

CHUNK = 256  # samples compared at a time
SPARSE = 10  # times as many outputs as classes that occur: the targets are numbers of another kind, such as ids


def is_one_hot(targets: NDArray[Any]) -> bool:
    """Whether each row (of N x classes) is all 0 but for one 1, and there are rows enough for it to be no chance."""
    if targets.ndim != 2 or len(targets) < 2 or targets.shape[1] < 2:
        return False
    return bool(((targets == 0) | (targets == 1)).all() and ((targets == 1).sum(1) == 1).all())


def are_whole(targets: NDArray[Any]) -> bool:
    """Whether real targets are whole numbers from 0, as classes are, and fewer different ones than half the samples."""
    if targets.dtype.kind != "f" or not np.isfinite(targets).all() or (targets < 0).any():
        return False
    return bool((targets == np.floor(targets)).all()) and 2 * len(np.unique(targets)) <= len(targets)


def count_classes(parts: Mapping[str, Tensor], where: str) -> int:
    """Outputs for these class numbers (N,), where the recipe does not state them: the largest one and 1.

    Raises DataError for one class alone, and where nine of ten outputs or more would never have a sample.
    """
    found = sorted({label for labels in parts.values() for label in labels.unique().tolist()})
    if len(found) == 1:
        raise DataError(
            f"{where}: every target is {found[0]}, and one class is always right; check the targets, or state "
            "data.classes, or set data.task: regression"
        )
    outputs: int = found[-1] + 1
    if outputs >= SPARSE * len(found):
        raise DataError(
            f"{where}: the largest is {found[-1]:,}, which makes {outputs:,} outputs, and {len(found):,} of them have "
            "samples; renumber them (np.unique(targets, return_inverse=True)[1]), state data.classes, or set "
            "data.task: regression"
        )
    return outputs


def class_notes(parts: Mapping[str, Tensor], outputs: int, *, stated: bool) -> list[str]:
    """What looks odd in the class numbers (N,) of the parts, "train" first; stated: the number of outputs was given."""
    train, *others = (set(labels.unique().tolist()) for labels in parts.values())
    notes = []
    dead = set(range(outputs)).difference(train, *others)
    if len(train) == 1:
        notes.append(f"data: all training samples are of class {min(train)}")
    if dead == {0} and not stated:
        notes.append(
            f"data: classes begin at 1, so that one of the {outputs} outputs never has a sample; subtract 1 from the "
            "targets"
        )
    elif dead and not stated:
        notes.append(f"data: {len(dead)} of {outputs} classes have no sample ({shortened(dead)}); renumber the targets")
    for name, labels in list(parts.items())[1:]:
        unseen = set(labels.unique().tolist()) - train
        if unseen:
            count = int(torch.isin(labels, torch.tensor(list(unseen))).sum())
            notes.append(
                f"data: {count} of {len(labels)} {name} samples are of classes that training never sees "
                f"({shortened(unseen)})"
            )
    return notes


def constant_notes(what: str, values: Tensor) -> list[str]:
    """Whether channels of inputs (N, C, ...), or outputs of real targets (N, outputs), never change. what: they are."""
    same = _constant(values) if len(values) > 1 and values.dim() > 1 else torch.zeros(0, dtype=torch.bool)
    if not same.any():
        return []
    which = shortened(same.nonzero()[:, 0].tolist())
    return [f"data: {int(same.sum())} of {len(same)} {what} are constant ({which}): they teach nothing"]


def _constant(values: Tensor) -> Tensor:
    """(C,) whether all of (N, C, ...) is one value in a channel; what varies is mostly found in the first samples."""
    first = values[:1].reshape(1, values.shape[1], -1)[..., :1]
    same = torch.ones(values.shape[1], dtype=torch.bool)
    for chunk in values.split(CHUNK):
        same &= (chunk.reshape(*chunk.shape[:2], -1) == first).all(2).all(0)
        if not same.any():
            break
    return same


def shortened(names: Iterable[object]) -> str:
    """The first few of the names (numbers in their order), and whether there are more."""
    listed: Sequence[object] = sorted(names) if isinstance(names, set) else list(names)
    return ", ".join(map(str, listed[:5])) + (", ..." if len(listed) > 5 else "")
