"""Singular values of Jacobians by depth and of one layer, and which inputs reach which outputs."""

from collections.abc import Mapping
from math import nan
from pathlib import Path
from textwrap import shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compresskit.graph.reachability import Reachability
from compresskit.numerics.orthogonal.isometry import SingularValues
from compresskit.passes.isometry.network import LayerIsometry, NetworkIsometry
from compresskit.plots.panels import grid, save

_BINS = 50
_DECADES = 30  # a factor between the smallest and the largest, above which an axis is logarithmic
_DEPTHS = (1, 2, 3, 5)  # layers drawn beside the last one, as in SAO's Figure 8


def by_depth(path: Path, networks: Mapping[str, NetworkIsometry]) -> None:
    """Mean and variance of the singular values of each layer's output by the input, a line a network (SAO, Fig. 11)."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for panel, what in zip(figure.subplots(1, 2), ("mean", "variance"), strict=True):
        for number, (name, network) in enumerate(networks.items()):
            points = [(n, getattr(x.depth, what)) for n, x in enumerate(network.layers, 1) if x.depth is not None]
            style, marker = ("-", "--", ":")[number // 10 % 3], "." if len(points) < 60 else ""
            panel.plot(*zip(*points, strict=True), style, marker=marker, color=f"C{number % 10}", label=name)
        panel.set(xlabel="layer", ylabel=f"{what} of the singular values")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _scale(panel)
        panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def by_column(path: Path, cells: Mapping[tuple[str, str], NetworkIsometry]) -> None:
    """Mean and variance of the singular values of the whole network for each column, a line a row (SAO, Fig. 11)."""
    rows, columns = (list(dict.fromkeys(place[part] for place in cells)) for part in (0, 1))
    figure = Figure(figsize=(11, 4), layout="constrained")
    for panel, what in zip(figure.subplots(1, 2), ("mean", "variance"), strict=True):
        for number, row in enumerate(rows):
            values = [getattr(cells[row, column].end, what) if (row, column) in cells else nan for column in columns]
            style = ("-", "--", ":")[number // 10 % 3]
            panel.plot(columns, values, style, marker=".", color=f"C{number % 10}", label=row)
        panel.set(ylabel=f"{what} of the singular values")
        _scale(panel)
        panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def _scale(panel: Axes) -> None:
    """A logarithmic axis for values over decades; of zeros nothing is drawn then."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.lines])
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) and positive.max() > _DECADES * positive.min():
        panel.set_yscale("log")


def of_layer(path: Path, networks: Mapping[str, NetworkIsometry]) -> None:
    """A panel a network: singular values of its middle layer over those of the dense orthogonal one (SAO, Fig. 9)."""
    chosen = {name: network.layers[len(network.layers) // 2] for name, network in networks.items()}
    figure, panels = grid(len(chosen), 4, 3)
    largest = max(one.largest for layer in chosen.values() for one in (layer.own, layer.orthogonal) if one is not None)
    edges = np.linspace(0, 1.02 * largest if 0 < largest < np.inf else 1, _BINS + 1).tolist()
    for panel, (name, layer) in zip(panels, chosen.items(), strict=True):
        _histograms(panel, layer, edges)
        p = "" if layer.orthogonal is None else f", p = {layer.p:.2g}"
        panel.set_title(f"{shorten(name, 30)}: {layer.name}{p}", fontsize=9)
        panel.set(xlabel="singular value", ylabel="share")
        panel.legend(frameon=False, fontsize=8)
    save(figure, path)


def _histograms(panel: Axes, layer: LayerIsometry, edges: list[float]) -> None:
    drawn: list[tuple[str, SingularValues | None, str]] = [
        ("orthogonal", layer.orthogonal, "tab:grey"),
        ("estimated" if layer.own.estimated else "layer", layer.own, "tab:blue"),
    ]
    for label, values, colour in drawn:
        if values is not None:
            weights = np.ones_like(values.values.cpu()) if values.weights is None else values.weights.cpu().numpy()
            places = values.values.cpu().numpy().ravel()
            panel.hist(places, edges, weights=weights.ravel() / weights.sum(), color=colour, alpha=0.6, label=label)


def reached(path: Path, networks: Mapping[str, Reachability]) -> None:
    """A row a network, a panel a depth: which inputs (columns) have a path to which outputs (rows) (SAO, Fig. 8)."""
    depths = max((_depths(len(one.matrices)) for one in networks.values()), key=len)
    figure = Figure(figsize=(3 * len(depths) + 0.4, 3.2 * len(networks) + 0.3), layout="constrained")
    rows = figure.subplots(len(networks), len(depths), squeeze=False)
    for row, (name, paths) in zip(rows, networks.items(), strict=True):
        layers = list(paths.matrices.items())
        for panel in row:
            panel.set_axis_off()
        for panel, depth in zip(row, _depths(len(layers)), strict=False):
            layer, matrix = layers[depth - 1]
            panel.set_axis_on()
            panel.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
            panel.set_title(f"{depth}: {layer}\n{float(matrix.double().mean()):.1%} connected", fontsize=8)
            panel.tick_params(labelsize=6)
        row[0].set_ylabel(shorten(name, 24), fontsize=9)
    figure.supxlabel(f"input of {', '.join(dict.fromkeys(one.start for one in networks.values()))}", fontsize=9)
    save(figure, path)


def _depths(count: int) -> list[int]:
    return sorted({*(depth for depth in _DEPTHS if depth <= count), count})
