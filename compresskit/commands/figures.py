"""The figures that every report shows: parameters, multiply-accumulates, latency, bytes."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from compresskit.commands.result import NONZERO, SPARSE, Figure, Format
from compresskit.graph.counting import count
from compresskit.graph.masks import Masks, kept
from compresskit.graph.shapes import evaluating, example
from compresskit.shapes import Shape


@dataclass(frozen=True)
class Figures:
    """Of one network. macs: of one sample. kept: parameters that masks do not set to zero; kept_macs: of those weights.

    latency: milliseconds of a forward pass, median. nbytes: of its file.
    """

    metrics: dict[str, float]
    parameters: int
    kept: int
    macs: int
    kept_macs: int
    latency: float
    nbytes: int


def figures(
    network: fx.GraphModule,
    input_shape: Shape,
    metrics: dict[str, float],
    device: torch.device,
    path: Path,
    batch: int,
    repeats: int,
    masks: Masks,
) -> Figures:
    counts = count(network, input_shape)
    milliseconds = latency(network, input_shape, device, batch, repeats)
    parameters, macs = kept(counts, masks)
    nbytes = path.stat().st_size if path.exists() else 0
    return Figures(metrics, counts.parameters, parameters, counts.macs, macs, milliseconds, nbytes)


def latency(network: fx.GraphModule, input_shape: Shape, device: torch.device, batch: int, repeats: int) -> float:
    """Median time in milliseconds of a forward pass in eval mode, after three that are not counted."""
    return latency_on(network, example(network, input_shape, batch), device, repeats)


def latency_on(network: nn.Module, inputs: Any, device: torch.device, repeats: int) -> float:
    """`latency` on a given batch."""
    times = []
    with torch.inference_mode(), evaluating(network):
        for _ in range(repeats + 3):
            _wait(device)
            start = time.perf_counter()
            network(inputs)
            _wait(device)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])


def compared(before: list[Figures], after: list[Figures], batch: int, device: torch.device) -> list[Figure]:
    """The rows of the report's first table, one value a trial; `before` may be empty."""

    def row(name: str, value: Callable[[Figures], float], form: Format) -> Figure:
        return Figure(name, tuple(map(value, before)), tuple(map(value, after)), form)

    def metric(name: str) -> Figure:
        return row(f"test {name}", lambda f: f.metrics[name], "number")

    rows = [metric(name) for name in after[0].metrics]
    masked = any(f.kept < f.parameters for f in (*before, *after))
    rows.append(row("parameters", lambda f: f.parameters, "count"))
    rows += [row(NONZERO, lambda f: f.kept, "count")] if masked else []
    rows.append(row("MACs", lambda f: f.macs, "count"))
    rows += [row(SPARSE, lambda f: f.kept_macs, "count")] if masked else []
    rows.append(row("file", lambda f: f.nbytes, "bytes"))
    return [*rows, row(f"latency, batch {batch}, {device.type}", lambda f: f.latency, "ms")]


def draw_sizes(folder: Path, networks: Mapping[str, fx.GraphModule], input_shape: Shape) -> None:
    """layer-sizes.png: what each layer has of the parameters and MACs of one network, or of two by their names."""
    from compresskit.plots.sizes import layer_sizes  # a quarter of a second, for those that draw

    found = {name: count(network, input_shape).layers for name, network in networks.items()}
    sizes = {name: {layer.name: (layer.parameters, layer.macs) for layer in layers} for name, layers in found.items()}
    layer_sizes(folder / "layer-sizes.png", sizes)


def said(metrics: Mapping[str, float]) -> str:
    """Metrics on one line, as logs and histories have them."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def slower(rows: list[Figure]) -> list[str]:
    """A note where the net multiplies less and is no faster for it."""
    found = {row.name: row for row in rows if row.before}
    timed = next((row for row in found.values() if row.format == "ms"), None)
    if timed is None or not _fell(found["MACs"]) or _fell(timed):
        return []
    return ["latency did not drop: at this batch size something else than multiplying takes the time"]


def _fell(row: Figure) -> bool:
    return statistics.fmean(row.after) < statistics.fmean(row.before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
