"""Metrics of a network on a split, by task."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compresskit.data.dataset import Split
from compresskit.graph.shapes import evaluating
from compresskit.training.distributed import Group


@dataclass(frozen=True)
class Metric:
    """Mean over samples. total: (output, target) of a batch -> sum over its samples, shape ()."""

    total: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool = False


def _correct(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).sum()


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.double(), target, reduction="sum")


def _absolute_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.double() - target).abs().flatten(1).mean(1).sum()


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.double() - target).square().flatten(1).mean(1).sum()


def evaluate(
    network: nn.Module,
    split: Split,
    *,
    task: str,
    device: torch.device | str = "cpu",
    batch_size: int = 1000,
    group: Group = Group(),  # noqa: B008
) -> dict[str, float]:
    """Means over the split, in the parameters' own precision: accuracy and loss (cross-entropy), or mae and mse.

    Errors of several outputs are averaged over them. Sums are float64, over all processes of `group`. The network runs
    in eval mode on `device`, where its parameters must lie; its mode is left as it was.
    Raises ValueError if the split is empty.
    """
    metrics = METRICS[task]
    device = torch.device(device)
    sums = torch.zeros(len(metrics) + 1, dtype=torch.float64, device=device)
    with torch.inference_mode(), evaluating(network):
        for inputs, targets in split.batches(batch_size, device, rank=group.rank, world=group.world):
            output = network(inputs)
            sums[:-1] += torch.stack([metric.total(output, targets).double() for metric in metrics.values()])
            sums[-1] += len(targets)
    group.sum_tensors([sums])
    *totals, count = sums.tolist()
    if count == 0:
        raise ValueError("the split holds no samples; give one that does")
    return {name: total / count for name, total in zip(metrics, totals, strict=True)}


METRICS: dict[str, dict[str, Metric]] = {  # the first of a task is its main one
    "classification": {"accuracy": Metric(_correct, higher_is_better=True), "loss": Metric(_cross_entropy)},
    "regression": {"mae": Metric(_absolute_error), "mse": Metric(_squared_error)},
}
