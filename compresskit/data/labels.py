"""What class numbers give away about themselves: labels that cannot be meant are refused, odd ones are said."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from compresskit.errors import DataError

log = logging.getLogger("compresskit")

_SHOWN = 5  # classes in a message


def check_labels(where: str, parts: Mapping[str, Tensor], classes: int, *, counted: bool) -> None:
    """Looks at the class numbers of all parts, "train" and others.

    parts: (N,) int64 of each. classes: outputs of the net. counted: whether that is the largest number + 1 for want of
    a better one. Raises DataError where the training part has one class alone, a number is no class, or so few of the
    numbers occur that they must be names of something else; warns of classes that lack samples.
    """
    for name, labels in parts.items():
        if bool((wrong := (labels < 0) | (labels >= classes)).any()):
            raise DataError(
                f"{where}: {int(wrong.sum())} labels of {name} are none of the {classes} classes, the first "
                f"{int(labels[wrong][0])}; classes are numbered from 0; mend or leave out those samples"
            )
    trained = torch.bincount(parts["train"], minlength=classes) > 0
    anywhere = torch.stack([torch.bincount(labels, minlength=classes) > 0 for labels in parts.values()]).any(0)
    if int(trained.sum()) == 1:
        raise DataError(
            f"{where}: all {len(parts['train'])} training labels are {int(parts['train'][0])}; nothing can be learnt "
            "from one class; check the targets"
        )
    present = int(anywhere.sum())
    if counted and classes > 100 + 10 * present:
        raise DataError(
            f"{where}: the labels go up to {classes - 1:,}, but only {present} numbers occur; number the classes from "
            "0 on, or set data.classes if the others are to come"
        )
    if counted and present < classes:
        _say_which_lack(where, anywhere)
    unseen = anywhere & ~trained
    if bool(unseen.any()):
        count = sum(int(unseen[labels].sum()) for labels in parts.values())
        log.warning(
            "%s: no training sample of class %s, which %d others have: a net cannot know them",
            where, _listed(unseen), count,
        )  # fmt: skip


def _say_which_lack(where: str, present: Tensor) -> None:
    if not present[0] and bool(present[1:].all()):
        log.warning(
            "%s: labels start from 1, so that output 0 of the net has nothing to learn; subtract 1 from them", where
        )
        return
    log.warning(
        "%s: no sample of class %s, so that those outputs of the net have nothing to learn", where, _listed(~present)
    )


def _listed(which: Tensor) -> str:
    numbers = which.nonzero().flatten().tolist()
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(map(str, numbers[:_SHOWN])) + more
