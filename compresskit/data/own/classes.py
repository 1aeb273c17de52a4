"""What the targets of the user's own data set mean: the task, the number of outputs, the names of classes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskit.data.own.form import Form
from compresskit.data.own.returned import Part
from compresskit.data.own.splits import named
from compresskit.data.own.targets import OWN, is_structured
from compresskit.errors import DataError

Classes = int | tuple[str, ...] | None


def meant(where: str, sample: Any, parts: Mapping[str, Part], form: Form, task: str, classes: Classes) -> Form:
    """The form with the task, the outputs and the names of classes that the first sample and the data sets tell.

    task, classes: as the recipe has them; auto and None where it leaves them out. Raises DataError where they cannot
    be told, and where they contradict the sample.
    """
    with named(where):
        collate = parts["train"].collate
        _, target = form.pair(sample if collate is None else collate([sample]))
        if task == OWN or (task == "auto" and _is_own(target, collate is not None)):
            if classes is not None:
                raise DataError(f"data.classes: it is {classes}, and targets of any structure have none; leave it out")
            return replace(form, task=OWN)
        target = target if collate is None else target[0]
        text = isinstance(target, str | bytes | np.str_ | np.bytes_)
        value = None if text else torch.as_tensor(np.asarray(target))
        found = _task(value) if task == "auto" else task
        if text and found != "classification":
            raise DataError(f"targets are texts, such as {target!r}, and the task is {found}; leave data.task out")
        if found == "regression":
            if value is None or classes is not None:
                raise DataError("data.classes: a regression has none; leave it out, or change data.task")
            if value.ndim > 1:
                raise DataError(f"a target is of shape {tuple(value.shape)}; regression takes one number or a row")
            return replace(form, task=found, outputs=max(1, value.numel()))
        names = _names(parts, classes)
        if text and not names:
            raise DataError(f"targets are texts, such as {target!r}; list the names of all classes as data.classes")
        outputs = len(names) or (classes if isinstance(classes, int) else _count(parts, value))
        return replace(form, task=found, outputs=outputs, names=names)


def _is_own(target: Any, collated: bool) -> bool:
    """Whether a target, or those of a batch of one, are none that other tasks take."""
    if not collated:
        return is_structured(target)
    batch = isinstance(target, list | tuple | Tensor | np.ndarray) and len(target) == 1
    return not batch or is_structured(target[0])


def _task(value: Tensor | None) -> str:
    if value is None or (value.ndim == 0 and not value.is_floating_point()):
        return "classification"
    if value.ndim <= 1 and (value.is_floating_point() or value.dtype == torch.bool):
        return "regression"
    if value.ndim == 2 and not value.is_floating_point():
        return "segmentation"
    raise DataError(
        f"a target is of shape {tuple(value.shape)} and {value.dtype}; it must be a class, a map of classes, or one or "
        "several real numbers, or data.task must say what it is"
    )


def _names(parts: Mapping[str, Part], stated: Classes) -> tuple[str, ...]:
    """Of the classes, as they are stated or the training set has them; none where only their number is stated."""
    if isinstance(stated, int):
        return ()
    names = stated or getattr(parts["train"].dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, tuple | list) and len(names) > 1 else ()


def _count(parts: Mapping[str, Part], target: Tensor | None) -> int:
    """How many classes there are, as the data sets list them; of a truth value two."""
    if target is not None and target.dtype == torch.bool:
        return 2
    largest = [number for part in parts.values() if (number := _largest(part.dataset)) is not None]
    outputs = max(largest, default=0) + 1
    if outputs < 2 or _largest(parts["train"].dataset) is None:
        raise DataError("it does not tell how many classes there are; give data.classes, a number or their names")
    return outputs


def _largest(dataset: Any) -> int | None:
    """The largest class that a data set lists, as torchvision's do and those of tensors; None where it does not."""
    tensors = getattr(dataset, "tensors", None)
    listed = tensors[-1] if isinstance(tensors, tuple) and tensors else getattr(dataset, "targets", None)
    if not isinstance(listed, Tensor | np.ndarray | list) or not len(listed):
        return None
    labels = np.asarray(listed)
    return int(labels.max()) if labels.dtype.kind in "iu" and labels.ndim == 1 else None
