"""Spectral densities with their power laws, alpha by depth and through training, and similarities of layers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from compresskit.passes.spectra.spectrum import OVER, UNDER, Spectrum
from compresskit.plots.panels import grid, save

_BINS = 60
_COLOURS = {"over-trained": "tab:red", "well-trained": "tab:green", "under-trained": "tab:orange", "": "tab:grey"}
_NAMED = 40  # layers on an axis, above which only some have a name


def densities(path: Path, found: Sequence[Spectrum]) -> None:
    """A panel a layer: density of the eigenvalues on logarithmic axes, and the fitted power law over its tail."""
    drawn = [row for row in found if len(row.eigenvalues) and row.eigenvalues[-1] > 0]
    if not drawn:
        return
    figure, panels = grid(len(drawn), 3.2, 2.6, columns=6)
    for panel, row in zip(panels, drawn, strict=True):
        values = row.eigenvalues[row.eigenvalues > row.eigenvalues[-1] * 1e-12]
        edges = np.geomspace(values[0], values[-1] * (1 + 1e-9), min(_BINS, max(2, len(values))))
        counts, edges = np.histogram(values, edges) if edges[0] < edges[-1] else (np.array([len(values)]), edges[:2])
        with np.errstate(divide="ignore", invalid="ignore"):
            density = counts / (np.diff(edges) * len(values))
        centres = np.sqrt(edges[1:] * edges[:-1])
        panel.plot(centres[counts > 0], density[counts > 0], ".", markersize=3, color="tab:blue")
        if math.isfinite(row.alpha):
            # normalised over the tail: share of values in it, times (alpha - 1) / xmin (x / xmin)^-alpha
            x = np.geomspace(row.xmin, row.xmax, 50)
            share = row.num_pl_spikes / len(values)
            law = share * (row.alpha - 1) / row.xmin * (x / row.xmin) ** -row.alpha
            panel.plot(x[law > 0], law[law > 0], color=_COLOURS[row.regime], linewidth=1.5)
            panel.axvline(row.xmin, color="grey", linewidth=0.6, linestyle=":")
        panel.set_xscale("log")
        panel.set_yscale("log")
        doubt = "" if row.reliable else " ?"
        name = row.name if len(row.name) < 26 else f"...{row.name[-23:]}"
        panel.set_title(f"{name}\nalpha {row.alpha:.2f}{doubt}, D {row.D:.2f}", fontsize=8)
        panel.tick_params(labelsize=6, which="both")
    figure.supxlabel("eigenvalue")
    figure.supylabel("density")
    save(figure, path)


def alphas(path: Path, found: Sequence[Spectrum]) -> None:
    """Alpha of each layer in the order of the network; hollow where the tail has too few values to be relied on."""
    figure = Figure(figsize=(max(6.0, min(16.0, 0.3 * len(found))), 4.2), layout="constrained")
    panel = figure.subplots()
    panel.axhspan(OVER, UNDER, color="tab:green", alpha=0.08)
    panel.plot([row.alpha for row in found], color="lightgrey", zorder=1)
    for place, row in enumerate(found):
        if math.isfinite(row.alpha):
            colour = _COLOURS[row.regime]
            panel.errorbar(place, row.alpha, row.sigma, color=colour, linewidth=0.8, zorder=2)
            inside = colour if row.reliable else "white"
            panel.plot(place, row.alpha, "o", color=colour, markerfacecolor=inside, markersize=5, zorder=3)
    finite = [row.alpha for row in found if math.isfinite(row.alpha)]
    if finite and max(finite) > 20:
        panel.set_yscale("log")
    step = -(-len(found) // _NAMED)
    panel.set_xticks(range(0, len(found), step), [row.name for row in found[::step]], rotation=90, fontsize=6)
    panel.set(ylabel="alpha, with its standard error")
    panel.grid(alpha=0.3)
    save(figure, path)


def through_training(path: Path, history: Mapping[int, Sequence[Spectrum]]) -> None:
    """Alpha of each layer by epoch, from blue (near the input) to yellow, and their mean in black."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    panel = figure.subplots()
    epochs = list(history)
    names = [row.name for row in history[epochs[0]]]
    shades = colormaps["viridis"](np.linspace(0, 0.95, len(names)))
    by_epoch = [{row.name: row.alpha for row in rows} for rows in history.values()]
    for number, name in enumerate(names):
        panel.plot(epochs, [alphas.get(name, math.nan) for alphas in by_epoch], color=shades[number], linewidth=1)
    with np.errstate(invalid="ignore"):
        means = [np.mean([value for value in alphas.values() if math.isfinite(value)]) for alphas in by_epoch]
    panel.plot(epochs, means, color="black", linewidth=2, label="mean")
    panel.set(xlabel="epoch", ylabel="alpha")
    panel.set_yscale("log")
    panel.axhspan(OVER, UNDER, color="tab:green", alpha=0.08)
    panel.legend(frameon=False)
    panel.grid(alpha=0.3, which="both")
    save(figure, path)


def layer_rates(
    path: Path, metric: str, measured: Mapping[str, Sequence[float]], factors: Mapping[str, Sequence[float]]
) -> None:
    """By epoch the metric and the factor of each layer's rate, and the last factors in order and by rank.

    measured, factors: by layer, one value for each epoch. Layers go from blue, near the input, to yellow.
    """
    figure, panels = grid(3, 5.2, 4, columns=3)
    shades = colormaps["viridis"](np.linspace(0, 0.95, len(factors)))
    for panel, curves, label in zip(panels, (measured, factors), (metric, "rate / schedule's"), strict=False):
        for shade, values in zip(shades, curves.values(), strict=True):
            panel.plot(range(1, len(values) + 1), values, color=shade, linewidth=1)
        panel.set(xlabel="epoch", ylabel=label)
        panel.grid(alpha=0.3)
    last = [values[-1] for values in factors.values()]
    panels[2].plot(range(1, len(last) + 1), last, ".-", label="in the order of the network")
    panels[2].plot(range(1, len(last) + 1), sorted(last, reverse=True), ".-", label="by rank")
    panels[2].axhline(1, color="grey", linewidth=0.8)
    panels[2].set(xlabel="layer", ylabel="rate / schedule's, last epoch")
    panels[2].legend(frameon=False)
    panels[2].grid(alpha=0.3)
    save(figure, path)


def heat_maps(path: Path, parts: Mapping[str, tuple[NDArray[np.float64], Sequence[str], Sequence[str]]]) -> None:
    """CKA of every output (rows) with every output (columns), a panel for each pair of networks, by its title."""
    sizes = [max(4.0, min(14.0, 0.22 * len(names))) for _, rows, columns in parts.values() for names in (rows, columns)]
    figure = Figure(figsize=(sum(sizes[1::2]) + 2, max(sizes[::2]) + 1), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for panel, (title, (similarity, rows, columns)) in zip(panels, parts.items(), strict=True):
        image = panel.imshow(similarity, vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto")
        for axis, names in ((panel.xaxis, columns), (panel.yaxis, rows)):
            step = -(-len(names) // (2 * _NAMED))
            axis.set_ticks(range(0, len(names), step), list(names)[::step], fontsize=6)
        panel.tick_params(axis="x", rotation=90)
        if len(parts) > 1:
            panel.set_title(title)
    figure.colorbar(image, ax=list(panels), label="CKA")
    save(figure, path)
