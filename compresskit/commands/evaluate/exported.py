"""Metrics, size and latency of files that `export` wrote for other programs, on the recipe's data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compresskit.commands.figures import latency_on
from compresskit.commands.parents import other_normalisation
from compresskit.commands.result import Figure, Result
from compresskit.commands.session import Session
from compresskit.data.dataset import DataSet
from compresskit.data.own.targets import OWN
from compresskit.errors import CheckpointError
from compresskit.shapes import shapes_of
from compresskit.storage.exported.running import Exported, open_exported
from compresskit.training.tasks.evaluation import evaluate

_CPU = torch.device("cpu")
_CERTAIN = 1.01  # a probability, rounded to eight bits


def evaluated(current: Session, path: Path) -> Result:
    """The report on a .pt2 or .onnx file, which runs on the CPU. Raises CheckpointError where it does not fit."""
    network = open_exported(path)
    check_told(network.told, path, current.data)
    check_outputs(current, network, path)
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
    if other_normalisation(told.get("mean", []), told.get("std", []), data):
        raise CheckpointError(
            f"{path}: made for inputs of mean {told['mean']} and deviation {told['std']}, the recipe normalises by "
            f"{list(data.mean)} and {list(data.std)}; give the data that it was trained on"
        )


def check_outputs(current: Session, network: Exported, path: Path) -> None:
    """Raises CheckpointError where a batch of the test set gives what the task cannot be read from."""
    if current.data.task == OWN:
        return
    inputs, targets = next(current.data.test.batches(current.recipe.moments.batch_size, _CPU))
    with torch.inference_mode():
        found = network.runs(network.taken(inputs))
    given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if given[1:2] != (current.data.outputs,):
        raise CheckpointError(
            f"{path}: it gives {given} for {len(targets)} samples, and the recipe's data have {current.data.outputs} "
            "outputs each; use the data that it was made for"
        )
    if network.told.get("probabilities") and not bool(((found >= 0) & (found <= _CERTAIN)).all()):
        raise CheckpointError(f"{path}: it tells that it gives probabilities, and gives other numbers; export it again")


def _inside(told: dict[str, Any]) -> list[str]:
    parts = {"normalised_inside": "normalisation", "probabilities": "softmax", "quantized": "int8"}
    return [what for key, what in parts.items() if told.get(key)]
