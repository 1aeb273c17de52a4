"""Losses and metrics of the user's own: functions of outputs and targets, named in the recipe."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compresskit import user_code
from compresskit.data.own.targets import OWN, Targets
from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.numerics.outputs import mapped, tensors_of
from compresskit.options import option

OwnMetrics = Mapping[str, Callable[[Any, Any], Any]]  # by name
MAPS = ("segmentation", "detection")  # tasks whose outputs are too large to be kept


@option
class OwnLoss:
    """A function of yours, (outputs, targets) -> mean over the batch: `loss: package.module:name` for short."""

    kind: Literal["factory"] = "factory"
    target: str  # "package.module:name", looked for in the current directory too
    arguments: dict[str, Any] = field(default_factory=dict)  # by name: of the class, or of each call of the function

    def made(self) -> Callable[[Any, Any], Tensor]:
        """The function. Raises RecipeError for a target that cannot be found, or made."""
        found = user_code.find(self.target, "loss.target", "losses")
        function = partial(found, **self.arguments)
        if inspect.isclass(found):
            function = user_code.made(self.target, self.arguments, "loss", "losses")

        def loss(output: Any, target: Any) -> Tensor:
            if isinstance(function, nn.Module) and (tensors := tensors_of(output)):
                function.to(tensors[0].device)
            value = function(*copied(output, target))  # what it changes in place, others read
            if not isinstance(value, Tensor) or value.shape != ():
                told = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise RecipeError(f"loss: {self.target} returned {told}; return the mean over the batch, of shape ()")
            return value

        return loss


def own_metrics(targets: Sequence[str]) -> OwnMetrics:
    """The functions by the names behind their colons. Raises RecipeError where one lacks, or is there twice."""
    found: dict[str, Callable[[Any, Any], Any]] = {}
    for target in targets:
        name = target.rpartition(":")[2]
        if name in found:
            raise RecipeError(f"report.metrics: two are called {name!r}; rename one of them")
        found[name] = user_code.find(target, "report.metrics", "metrics")
    return found


class OwnTally:
    """Each metric of all outputs and targets of a split, on the CPU; of maps and boxes the mean over single samples.

    Where targets may be of any structure, outputs are, too, and nobody knows how to join either: metrics get two lists,
    with what each batch has. With several processes the samples come in another order than the stored one.
    """

    def __init__(self, metrics: OwnMetrics, task: str) -> None:
        self._metrics, self._single, self._lists = metrics, task in MAPS, task == OWN
        self._outputs: list[Any] = []
        self._targets: list[Any] = []
        self._values: list[dict[str, float]] = []  # of single samples

    def add(self, output: Any, target: Any) -> None:
        """A batch of at least one sample."""
        if not self._metrics:
            return
        output, target = mapped(Tensor.cpu, output), target.cpu()
        if self._single:
            pairs = zip(output.split(1), target.split(1), strict=True)
            self._values += [self._of(*pair) for pair in pairs]
        else:
            self._outputs.append(output)
            self._targets.append(target)

    def figures(self, group: Group) -> dict[str, float]:
        """By name. Raises RecipeError for a metric that raises, or that is no finite number."""
        if not self._metrics:
            return {}
        if self._single:
            values = group.gather(self._values)
            return {name: math.fsum(one[name] for one in values) / len(values) for name in self._metrics}
        outputs, targets = group.gather(self._outputs), group.gather(self._targets)
        return self._of(outputs, targets) if self._lists else self._of(torch.cat(outputs), torch.cat(targets))

    def _of(self, output: Any, target: Any) -> dict[str, float]:
        found = {name: number(name, metric, output, target) for name, metric in self._metrics.items()}
        for name, value in found.items():
            if not math.isfinite(value):
                raise RecipeError(f"report.metrics: {name} returned {value}; return a finite number")
        return found


def copied(output: Any, target: Any) -> tuple[Any, Any]:
    """Copies of what functions of the user's get: of targets of any structure the user's own value."""
    return mapped(Tensor.clone, output), _copy(target)


def _copy(target: Any) -> Any:
    if isinstance(target, list):
        return [_copy(one) for one in target]
    return target.clone().value if isinstance(target, Targets) else target.clone()


def number(name: str, metric: Callable[[Any, Any], Any], output: Any, target: Any) -> float:
    """The metric of these samples, of which it gets copies. Raises RecipeError for one that raises, or is no number."""
    with blamed(f"report.metrics: {name}"):
        value = metric(*copied(output, target))
        told = type(value).__name__
        if isinstance(value, Tensor | np.ndarray | np.generic):
            told = f"{told} of shape {tuple(value.shape)} and {value.dtype}"
            value = value.item() if math.prod(value.shape) == 1 else None
        if not isinstance(value, int | float):
            raise RecipeError(f"report.metrics: {name} returned a {told}; return one real number")
        return float(value)


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Around the user's code: whatever it raises becomes a RecipeError of one line."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{what} raised {user_code.said(error)}") from error
