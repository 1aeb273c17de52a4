"""Plots of what happens in training: metrics by epoch, gradients, and the loss around a net."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from compresskit.numerics.kernel_density import NARROW, density
from compresskit.plots.panels import Curves, band, grid, save


def training_curves(path: Path, panels: Mapping[str, Mapping[str, Curves]], metric: str = "") -> None:
    """`metric` by epoch: in each panel a line for each network, mean and standard deviation over its curves.

    panels: by title, the networks' curves by name, one for each trial. A name has one colour in all panels.
    metric: empty where the titles name what is drawn.
    """
    figure, axes = grid(len(panels), 7 if len(panels) == 1 else 4.6, 4.5 if len(panels) == 1 else 3.8)
    names = list(dict.fromkeys(name for networks in panels.values() for name in networks))
    for panel, (title, networks) in zip(axes, panels.items(), strict=True):
        for name, several in networks.items():
            band(panel, several, 1, name, f"C{names.index(name) % 10}")
        panel.set(title=title, xlabel="epoch", ylabel=metric)
        panel.legend(frameon=False, fontsize=9 if len(names) < 8 else 6)
        panel.grid(alpha=0.3)
    save(figure, path)


def gains(path: Path, ends: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], first: str, metric: str) -> None:
    """By column of a grid, what each row's `metric` is above the first row's: mean and standard deviation over trials.

    ends: by (row, column), by images that it was measured on, a value for each trial (layerwise training, Figure 2.1).
    """
    rows = [row for row in dict.fromkeys(row for row, _ in ends) if row != first]
    columns = [column for column in dict.fromkeys(column for _, column in ends) if (first, column) in ends]
    figure, panels = grid(len(rows), 5, 3.6)
    for panel, row in zip(panels, rows, strict=True):
        places = [place for place, column in enumerate(columns) if (row, column) in ends]
        measured = ends[first, columns[0]] if columns else {}
        for number, images in enumerate(measured):
            several = [np.subtract(ends[row, columns[p]][images], ends[first, columns[p]][images]) for p in places]
            spread = [float(gain.std(ddof=1)) if len(gain) > 1 else 0.0 for gain in several]
            panel.errorbar(
                np.array(places) + 0.1 * number, [float(gain.mean()) for gain in several], spread,
                fmt="o-", capsize=3, color=f"C{number}", label=images,
            )  # fmt: skip
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        panel.set(title=row, ylabel=f"{metric}, above {first}")
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
    save(figure, path)


def gradient_cosines(path: Path, smallest: Mapping[str, Curves], last: Mapping[str, Sequence[float]]) -> None:
    """Left, the smallest cosine by epoch, a line for each network; right, the density of all after the last epoch.

    smallest: by network, one curve for each trial. last: by network, the cosines of all trials together.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, curves) in enumerate(smallest.items()):
        band(left, curves, 1, name, f"C{number % 10}")
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
    often a hundred times as high as the basin; what is below a thousandth of the largest value is drawn as that. Those
    of an error, a share, lie evenly.
    The trained net is the cross in the middle, the smallest value the dot. What is not finite stays white.
    """
    figure, panels = grid(len(surfaces), 4.4, 4)
    grids = [np.ma.masked_invalid(surface) for surface in surfaces.values()]
    smallest, largest = min(float(grid.min()) for grid in grids), max(float(grid.max()) for grid in grids)
    lowest = max(smallest, largest / 1000) or 1.0
    spaced, norm = (np.linspace, Normalize()) if metric == "error" else (np.geomspace, LogNorm())
    levels = spaced(lowest, largest if largest > lowest else 2 * lowest, 21)
    for panel, name, surface in zip(panels, surfaces, grids, strict=True):
        places = np.linspace(-extent, extent, len(surface))
        filled = panel.contourf(places, places, np.ma.maximum(surface, lowest), levels=levels, norm=norm)
        row, column = np.unravel_index(surface.argmin(), surface.shape)
        panel.plot(0, 0, "r+", markersize=12)
        panel.plot(places[column], places[row], "r.")
        panel.set(title=fill(name, 36), xlabel="second direction", ylabel="first direction")
    figure.colorbar(filled, ax=panels, label=metric, format="%.3g")
    save(figure, path)


def _density(panel: Axes, samples: Sequence[float], label: str, colour: str) -> None:
    if max(samples) - min(samples) < NARROW:
        panel.axvline(samples[0], color=colour, label=label)
    else:
        panel.plot(*density(samples), color=colour, label=label)
