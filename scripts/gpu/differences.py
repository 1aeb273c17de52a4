"""How much two runs differ, in what they answer or report."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def outputs_differ(one: Path, other: Path) -> float:
    """Largest difference of the outputs for 64 images, relative to the largest output; infinity for other shapes."""
    from compresskit import load
    from compresskit.data.mini import MnistMini

    images, _ = next(iter(MnistMini().load(0).test.batches(64, torch.device("cpu"))))
    nets = [load(folder / "model.pt").eval() for folder in (one, other)]
    shapes = [{name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} for net in nets]
    if shapes[0] != shapes[1]:
        return math.inf
    with torch.no_grad():
        first, second = (net(images) for net in nets)
    return relative(first, second)


def losses_differ(one: Path, other: Path) -> float:
    """Of the last epoch's mean training losses, of all trainings that the runs consist of."""
    found = [[last_loss(path) for path in sorted(folder.rglob("metrics.csv"))] for folder in (one, other)]
    return largest(*found)


def last_loss(path: Path) -> float:
    with path.open() as file:
        return float(list(csv.DictReader(file))[-1]["train_loss"])


def figures_differ(one: Path, other: Path) -> float:
    first, second = (json.loads((folder / "report.json").read_text())["figures"] for folder in (one, other))
    found = {f["name"]: f["after"] for f in second}
    return max(largest(f["after"], found[f["name"]]) for f in first if f["format"] == "number")


def tables_differ(one: Path, other: Path) -> float:
    first, second = (json.loads((folder / "report.json").read_text())["tables"] for folder in (one, other))
    rows = [(a["rows"], b["rows"]) for a, b in zip(first, second, strict=True)]
    return max(largest(a, b) for pair in rows for a, b in zip(*pair, strict=True))


def latency_above(folder: Path, share: float) -> float:
    """By how much of the latency before a run misses the share that was to be left; 0 where it is reached."""
    figures = json.loads((folder / "report.json").read_text())["figures"]
    (found,) = (figure for figure in figures if figure["name"].startswith("latency"))
    return max(0.0, float(found["after"][0]) / float(found["before"][0]) - share)


def largest(first: list[Any], second: list[Any]) -> float:
    """Largest relative difference of the numbers of two rows."""
    numbers = [(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, int | float) and a is not True]
    if any(math.isfinite(a) != math.isfinite(b) for a, b in numbers):
        return math.inf
    return max((abs(float(a) - float(b)) / max(abs(a), 1e-12) for a, b in numbers if math.isfinite(a)), default=0.0)


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max())


DIFFERENCES: dict[str, Callable[[Path, Path], float]] = {
    "outputs": outputs_differ,
    "losses": losses_differ,
    "figures": figures_differ,
    "tables": tables_differ,
}
