"""Metrics, size and latency of files that `export` wrote for other programs, on the recipe's data."""

from pathlib import Path
from typing import Any

import torch

from compresskit.commands.figures import latency_on
from compresskit.commands.parents import SHIFT
from compresskit.commands.result import Figure, Result
from compresskit.commands.session import Session
from compresskit.data.dataset import DataSet
from compresskit.errors import CheckpointError
from compresskit.shapes import shapes_of
from compresskit.storage.exported.running import Exported, open_exported
from compresskit.training.tasks.evaluation import evaluate

_CPU = torch.device("cpu")


def evaluated(current: Session, path: Path) -> Result:
    """The report on a .pt2 or .onnx file, which runs on the CPU. Raises CheckpointError where it does not fit."""
    network = open_exported(path)
    check_told(network.told, path, current.data)
    metrics = metrics_of(current, network)
    batch = current.recipe.report.latency_batch
    result = Result("evaluate", str(path), current.folder.path if current.folder else None)
    result.figures = [
        *(Figure(f"test {name}", (), (value,)) for name, value in metrics.items()),
        Figure("file", (), (path.stat().st_size,), "bytes"),
        Figure(f"latency, batch {batch}, cpu", (), (timed(current, network, batch),), "ms"),
    ]
    result.notes = [f"inside: {what}" for what in _inside(network.told)]
    result.details = {"told": network.told}
    return result


def metrics_of(current: Session, network: torch.nn.Module) -> dict[str, float]:
    """On the test set, on the CPU."""
    return evaluate(
        network, current.data.test, task=current.data.task, anchors=current.data.anchors,
        batch_size=current.recipe.moments.batch_size, group=current.group, metrics=current.metrics,
    )  # fmt: skip


def timed(current: Session, network: torch.nn.Module, batch: int) -> float:
    """Milliseconds for so many test samples, as the network of a file takes them."""
    inputs, _ = next(current.data.test.batches(batch, _CPU))
    if isinstance(network, Exported):
        return latency_on(network.runs, network.taken(inputs), _CPU, current.recipe.report.latency_repeats)
    return latency_on(network, inputs, _CPU, current.recipe.report.latency_repeats)


def check_told(told: dict[str, Any], path: Path, data: DataSet) -> None:
    """Raises CheckpointError where the file was made for other inputs than the data have."""
    shapes = [tuple(one["shape"][1:]) for one in told.get("inputs", [])]
    if shapes and (shapes != list(shapes_of(data.input_shape)) or told.get("task") != data.task):
        raise CheckpointError(
            f"{path}: made for {told.get('task')} of inputs {shapes}, the recipe's data is {data.task} of inputs "
            f"{data.input_shape}; use the data that the net was trained on"
        )
    then, now = ([*told.get("mean", []), *told.get("std", [])], [*data.mean, *data.std])
    scales = told.get("std", []) * 2
    if len(then) == len(now) and any(abs(a - b) > SHIFT * c for a, b, c in zip(then, now, scales, strict=True)):
        raise CheckpointError(
            f"{path}: made for inputs of mean {told['mean']} and deviation {told['std']}, the recipe normalises by "
            f"{list(data.mean)} and {list(data.std)}; give the data that it was trained on"
        )


def _inside(told: dict[str, Any]) -> list[str]:
    parts = {"normalised_inside": "normalisation", "probabilities": "softmax", "quantized": "int8"}
    return [what for key, what in parts.items() if told.get(key)]
