"""Plots of metrics of layers through a training, of one network or of several beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from compresskit.plots.panels import Curves, band, grid, save

Layers = Mapping[str, Sequence[float]]  # of each layer, a value for each epoch
Networks = Mapping[str, Sequence[Layers]]  # of each network, one for each trial
_EACH = 3  # layers of those that rise or fall most


def watched(path: Path, metrics: Mapping[str, Layers]) -> None:
    """Of each metric, the layers' curves by epoch with their mean in black; and its distribution over the layers at the
    end, of alpha with the exponential density of the same mean (layerwise training, Figure 2.6)."""
    figure, panels = grid(2 * len(metrics), 5.2, 3.6, columns=2)
    for place, (metric, layers) in enumerate(metrics.items()):
        values = np.array(list(layers.values()), dtype=np.float64)
        _curves(panels[2 * place], metric, values)
        _distribution(panels[2 * place + 1], metric, values[:, -1])
    save(figure, path)


def _curves(panel: Axes, metric: str, values: NDArray[np.float64]) -> None:
    epochs = np.arange(1, values.shape[1] + 1)
    for shade, curve in zip(colormaps["viridis"](np.linspace(0, 0.95, len(values))), values, strict=True):
        known = np.isfinite(curve)
        panel.plot(epochs[known], curve[known], ".-", color=shade, linewidth=1, markersize=3)
    mean = mean_of(values)
    known = np.isfinite(mean)
    panel.plot(epochs[known], mean[known], color="black", linewidth=2, label="mean")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.set(xlabel="epoch", ylabel=metric)
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)


def _distribution(panel: Axes, metric: str, last: NDArray[np.float64]) -> None:
    last = last[np.isfinite(last)]
    panel.set(xlabel=f"{metric}, last epoch", ylabel="density over the layers")
    panel.grid(alpha=0.3)
    if not len(last):
        return
    panel.hist(last, bins=min(20, max(5, len(last) // 2)), density=True, color="tab:blue", alpha=0.5)
    if metric == "alpha":
        points = np.linspace(0, last.max(), 100)
        panel.plot(points, np.exp(-points / last.mean()) / last.mean(), color="tab:red", label="exponential, same mean")
        panel.legend(frameon=False)


def mean_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the layers (axis 0) that have a value in an epoch; NaN where none has."""
    known = np.isfinite(values)
    counts = known.sum(0)
    return np.where(counts, np.where(known, values, 0).sum(0) / np.maximum(counts, 1), np.nan)


def means(path: Path, metrics: Mapping[str, Networks]) -> None:
    """Of each metric a panel, its mean over the layers by epoch, a line for each network: mean and standard deviation
    over trials (layerwise training, Figure 3.2)."""
    figure, panels = grid(len(metrics), 5.2, 3.8, columns=2)
    for panel, (metric, networks) in zip(panels, metrics.items(), strict=False):
        for number, (name, trials) in enumerate(networks.items()):
            curves = [mean_of(np.array(list(layers.values()), dtype=np.float64)).tolist() for layers in trials]
            _band(panel, curves, name, number)
        panel.set(xlabel="epoch", ylabel=f"{metric}, mean over layers")
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def layers_apart(path: Path, metric: str, networks: Networks, factors: Layers) -> None:
    """`metric` by epoch in the layers whose rates differ most from the schedule's, above and below, a line for each
    network (layerwise training, Figures 3.22 to 3.24).

    factors: of each layer's rate, by epoch; those of the first epoch say which layers are shown.
    """
    known = {layer for trials in networks.values() for layers in trials for layer in layers}
    ordered = sorted(known & factors.keys(), key=lambda layer: factors[layer][0])
    if not ordered:  # networks of other layers
        return
    shown = list(dict.fromkeys([*ordered[: -_EACH - 1 : -1], *ordered[:_EACH]]))
    figure, panels = grid(len(shown), 3.6, 3, columns=_EACH)
    for panel, layer in zip(panels, shown, strict=True):
        for number, (name, trials) in enumerate(networks.items()):
            _band(panel, [layers[layer] for layers in trials if layer in layers], name, number)
        panel.set(title=f"{layer}, rate × {factors[layer][0]:.2f}", xlabel="epoch", ylabel=metric)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def _band(panel: Axes, curves: Curves, name: str, number: int) -> None:
    """Mean and standard deviation over trials, of the epochs in which all have a value."""
    values = np.array(curves, dtype=np.float64)
    if not len(values):
        return
    epochs = np.flatnonzero(np.isfinite(values).all(0))
    if len(epochs):
        band(panel, values[:, epochs].tolist(), epochs + 1, name, f"C{number % 10}")


def rates(path: Path, networks: Mapping[str, Mapping[str, float]]) -> None:
    """The factor of each layer's rate, in the order of the network and by rank, a line for each network (layerwise
    training, Figures 2.3 to 2.5)."""
    figure, panels = grid(2, 6, 4)
    for number, (name, factors) in enumerate(networks.items()):
        values, places = list(factors.values()), range(1, len(factors) + 1)
        panels[0].plot(places, values, ".-", color=f"C{number % 10}", label=name)
        panels[1].plot(places, sorted(values, reverse=True), ".-", color=f"C{number % 10}")
    for panel, label in zip(panels, ("layer, in the order of the network", "layer, by rank"), strict=True):
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(xlabel=label, ylabel="rate / schedule's, last epoch")
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, path)
