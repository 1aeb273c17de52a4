"""Metrics of a network on a split, by task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from compresskit.data.dataset import Split
from compresskit.data.own.targets import OWN
from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.graph.shapes import evaluating
from compresskit.training.tasks.average_precision import VOC07, DetectionTally
from compresskit.training.tasks.own import OwnMetrics, OwnTally
from compresskit.training.tasks.segmentation import SegmentationTally

FIVE = "accuracy@5"
BESIDE = (FIVE, VOC07)  # second readings of the main metric, which tables of networks show, too
Anchors = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Metric:
    """total: (output, target) of a batch -> sum over its samples, shape (); None if it is no mean over samples.

    above: given only of networks with more outputs than that.
    """

    total: Callable[[Tensor, Tensor], Tensor] | None = None
    higher_is_better: bool = False
    above: int = 0


class Tally(Protocol):
    """Gathers what the metrics of one evaluation need."""

    def add(self, output: Any, target: Any) -> None:
        """A batch of at least one sample."""
        ...

    def figures(self, group: Group) -> dict[str, float]:
        """The metrics over the batches of all processes."""
        ...


class NoTally:
    """Where only the user's own metrics know what outputs are."""

    def add(self, output: Any, target: Any) -> None:
        pass

    def figures(self, group: Group) -> dict[str, float]:
        return {}


class MeanTally:
    """Means over samples; sums are float64."""

    def __init__(self, task: str, device: torch.device) -> None:
        self._metrics = {name: metric for name, metric in METRICS[task].items() if metric.total is not None}
        self._sums = torch.zeros(len(self._metrics) + 2, dtype=torch.float64, device=device)  # last: outputs, samples

    def add(self, output: Tensor, target: Tensor) -> None:
        totals = [metric.total(output, target).double() for metric in self._metrics.values() if metric.total]
        self._sums[:-2] += torch.stack(totals)
        self._sums[-2] += output.shape[1] * len(target)
        self._sums[-1] += len(target)

    def figures(self, group: Group) -> dict[str, float]:
        group.sum_tensors([self._sums])
        *totals, outputs, count = self._sums.tolist()
        if count == 0:
            raise ValueError("the split holds no samples; give one that does")
        means = zip(self._metrics.items(), totals, strict=True)
        return {name: total / count for (name, metric), total in means if outputs / count > metric.above}


def _correct(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).sum()


def _among_five(output: Tensor, target: Tensor) -> Tensor:
    return (output.topk(min(5, output.shape[1]), 1).indices == target[:, None]).sum()


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.double(), target, reduction="sum")


def _absolute_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.double() - target).abs().flatten(1).mean(1).sum()


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.double() - target).square().flatten(1).mean(1).sum()


def tally_for(task: str, anchors: Anchors, device: torch.device) -> Tally:
    """An empty one.  Raises RecipeError if a package that it needs is missing."""
    if task == OWN:
        return NoTally()
    if task == "detection":
        return DetectionTally(anchors, device)
    return SegmentationTally(device) if task == "segmentation" else MeanTally(task, device)


def evaluate(
    network: nn.Module,
    split: Split,
    *,
    task: str,
    anchors: Anchors = (),
    device: torch.device | str = "cpu",
    batch_size: int = 1000,
    group: Group = Group(),  # noqa: B008
    metrics: OwnMetrics | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The metrics of the task over the split, in the parameters' own precision, by METRICS' names; then the user's own.

    Means over samples: accuracy and loss (cross-entropy), with more than 10 classes accuracy@5 (the target is among the
    five highest scores); or mae and mse, of several outputs averaged over them. For segmentation see
    `SegmentationTally`; for detection `DetectionTally`, which needs the data's `anchors`. All processes of `group` get
    the whole split's figures. The network runs in eval mode on `device`, where its parameters must lie; its mode is
    left as it was.
    Raises ValueError if the split is empty, and what `metrics` raise as RecipeError.
    """
    device = torch.device(device)
    tally, own = tally_for(task, anchors, device), OwnTally(metrics or {}, task)
    with torch.inference_mode(), evaluating(network):
        for inputs, targets in split.batches(batch_size, device, rank=group.rank, world=group.world):
            output = network(inputs)
            tally.add(output, targets)
            own.add(output, targets)
            on_batch()
    return tally.figures(group) | own.figures(group)


METRICS: dict[str, dict[str, Metric]] = {  # the first of a task is its main one
    "classification": {
        "accuracy": Metric(_correct, higher_is_better=True),
        FIVE: Metric(_among_five, higher_is_better=True, above=10),
        "loss": Metric(_cross_entropy),
    },
    "regression": {"mae": Metric(_absolute_error), "mse": Metric(_squared_error)},
    "segmentation": {
        "miou": Metric(higher_is_better=True),
        "recall": Metric(higher_is_better=True),
        "precision": Metric(higher_is_better=True),
        "accuracy": Metric(higher_is_better=True),
        "loss": Metric(),
    },
    "detection": {"map": Metric(higher_is_better=True), VOC07: Metric(higher_is_better=True), "loss": Metric()},
    OWN: {},
}


def watched(task: str, outputs: int, own: OwnMetrics) -> dict[str, Metric]:
    """The metrics of the task for so many outputs, of which one picks the best epoch, the first by default.

    Targets of any structure have the user's own, of which higher is better. Raises RecipeError where these lack.
    """
    if task != OWN:
        return {name: metric for name, metric in METRICS[task].items() if outputs > metric.above}
    if not own:
        raise RecipeError(
            "report.metrics: only functions of yours know what targets of any structure mean; name one as report: "
            "{metrics: [package.module:name]}, the main one first"
        )
    return {name: Metric(higher_is_better=True) for name in own}


def higher_is_better(task: str, name: str) -> bool:
    return task == OWN or METRICS[task][name].higher_is_better


def shown_metrics(names: Iterable[str]) -> list[str]:
    """Of the names of an evaluation's figures those that tables of networks show: the main one, and BESIDE's."""
    main, *others = names
    return [main, *(name for name in others if name in BESIDE)]
