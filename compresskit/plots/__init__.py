"""Plots of a report, as PNG files. Home of matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compresskit.numerics.kernel_density import NARROW, density
from compresskit.plots.panels import grid, save

Curves = Sequence[Sequence[float]]
_SMALLEST = 1e-8  # below it an error is rounding, and a logarithmic scale shows nothing else


def learning_curves(path: Path, curves: Mapping[str, tuple[Curves, Curves]], metric: str) -> None:
    """One panel a network: `metric` by epoch, fused against random, mean and standard deviation over trials.

    curves: by the network's name, one curve for each trial; a fused one starts at epoch 0, before any retraining.
    """
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, (fused, random)) in zip(panels, curves.items(), strict=True):
        _band(panel, fused, 0, "fused", "tab:blue")
        _band(panel, random, 1, "from random", "tab:orange")
        panel.set(title=name, xlabel="epoch", ylabel=metric)
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
    save(figure, path)


def training_curves(path: Path, panels: Mapping[str, Mapping[str, Curves]], metric: str) -> None:
    """`metric` by epoch: in each panel a line for each network, mean and standard deviation over its curves.

    panels: by title, the networks' curves by name, one for each trial. A name has one colour in all panels.
    """
    figure, axes = grid(len(panels), 7 if len(panels) == 1 else 4.6, 4.5 if len(panels) == 1 else 3.8)
    names = list(dict.fromkeys(name for networks in panels.values() for name in networks))
    for panel, (title, networks) in zip(axes, panels.items(), strict=True):
        for name, several in networks.items():
            _band(panel, several, 1, name, f"C{names.index(name) % 10}")
        panel.set(title=title, xlabel="epoch", ylabel=metric)
        panel.legend(frameon=False, fontsize=9 if len(names) < 8 else 6)
        panel.grid(alpha=0.3)
    save(figure, path)


def gradient_cosines(path: Path, smallest: Mapping[str, Curves], last: Mapping[str, Sequence[float]]) -> None:
    """Left, the smallest cosine by epoch, a line for each network; right, the density of all after the last epoch.

    smallest: by network, one curve for each trial. last: by network, the cosines of all trials together.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, curves) in enumerate(smallest.items()):
        _band(left, curves, 1, name, f"C{number % 10}")
        _density(right, last[name], name, f"C{number % 10}")
    left.set(xlabel="epoch", ylabel="smallest cosine of gradients")
    right.set(xlabel="cosine of gradients after the last epoch", ylabel="density")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def landscapes(path: Path, surfaces: Mapping[str, Sequence[Sequence[float]]], extent: float, metric: str) -> None:
    """A panel a network: contours of `metric` over two directions, at the same levels in all, so that they compare.

    metric: one that is small where a net is good, and not negative. Levels grow by a constant factor, for corners are
    often a hundred times as high as the basin; what is below a thousandth of the largest value is drawn as that.
    The trained net is the cross in the middle, the smallest value the dot. What is not finite stays white.
    """
    figure, panels = grid(len(surfaces), 4.4, 4)
    grids = [np.ma.masked_invalid(surface) for surface in surfaces.values()]
    smallest, largest = min(float(grid.min()) for grid in grids), max(float(grid.max()) for grid in grids)
    lowest = max(smallest, largest / 1000) or 1.0
    levels = np.geomspace(lowest, largest if largest > lowest else 2 * lowest, 21)
    for panel, name, surface in zip(panels, surfaces, grids, strict=True):
        places = np.linspace(-extent, extent, len(surface))
        filled = panel.contourf(places, places, np.ma.maximum(surface, lowest), levels=levels, norm=LogNorm())
        row, column = np.unravel_index(surface.argmin(), surface.shape)
        panel.plot(0, 0, "r+", markersize=12)
        panel.plot(places[column], places[row], "r.")
        panel.set(title=fill(name, 36), xlabel="second direction", ylabel="first direction")
    figure.colorbar(filled, ax=panels, label=metric, format="%.3g")
    save(figure, path)


def candidates(path: Path, points: Sequence[tuple[str, float, int]]) -> None:
    """Unexplained share against the multiply-accumulates saved, a point for each chain that could be fused."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    panel.scatter([saved for _, _, saved in points], [share for _, share, _ in points], color="tab:blue")
    for name, share, saved in points:
        panel.annotate(name, (saved, share), xytext=(4, 4), textcoords="offset points", fontsize=7)
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set(xlabel="MACs saved", ylabel="unexplained share of the variance")
    panel.margins(x=0.2, y=0.1)
    panel.grid(alpha=0.3)
    save(figure, path)


def trade_offs(
    path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], chosen: Mapping[str, tuple[int, float]]
) -> None:
    """A panel a site: relative error against the inputs kept, on a logarithmic scale, and what was chosen.

    curves: by site, (kept, errors). chosen: by site, (kept, error).
    """
    figure, panels = grid(len(curves), 3.6, 2.8)
    for panel, (name, (kept, errors)) in zip(panels, curves.items(), strict=False):
        drawn = [(count, error) for count, error in zip(kept, errors, strict=True) if error > _SMALLEST]
        panel.plot([count for count, _ in drawn], [error for _, error in drawn], color="tab:blue")
        count, error = chosen[name]
        panel.plot([count], [max(error, _SMALLEST)], "o", color="tab:orange", label=f"kept: {count}")
        panel.set(title=name if len(name) < 30 else f"{name[:27]}...", xlabel="inputs kept", ylabel="unexplained share")
        panel.set_yscale("log")
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
    save(figure, path)


def comparison(
    path: Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    metric: str,
    size: str = "size, % of the original",
) -> None:
    """`metric` against the share of the original size, a line for each setting."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    for name, points in lines.items():
        style = ("-", "--", ":")[list(lines).index(name) // 10 % 3]  # ten colours, then they come again
        xs, ys = [100 * size for size, _ in points], [value for _, value in points]
        panel.plot(xs, ys, style, marker=".", label=name)
    panel.set(xlabel=size, ylabel=metric)
    panel.legend(frameon=False, fontsize=9 if len(lines) < 8 else 5)
    panel.grid(alpha=0.3)
    save(figure, path)


def _density(panel: Axes, samples: Sequence[float], label: str, colour: str) -> None:
    if max(samples) - min(samples) < NARROW:
        panel.axvline(samples[0], color=colour, label=label)
    else:
        panel.plot(*density(samples), color=colour, label=label)


def _band(panel: Axes, curves: Curves, first: int, label: str, colour: str) -> None:
    if not curves:
        return
    values = np.array(curves)
    epochs = np.arange(first, first + values.shape[1])
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    panel.plot(epochs, mean, color=colour, label=label, marker=".")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
