"""How much of each layer went, and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compresskit.plots.panels import grid, save

_NAMED = 60  # layers on an axis, above which only some have a name
_LEGEND = 20  # lines, above which colours alone say which is which


def ratios_by_layer(path: Path, ratios: Mapping[str, float], kind: str) -> None:
    """Share of the channels, weights or kernels that went, a bar for each group of layers, in their order."""
    figure = Figure(figsize=(max(6.0, min(18.0, 0.25 * len(ratios))), 4), layout="constrained")
    panel = figure.subplots()
    panel.bar(range(len(ratios)), [100 * ratio for ratio in ratios.values()], color="tab:blue")
    step = -(-len(ratios) // _NAMED)
    panel.set_xticks(range(0, len(ratios), step), list(ratios)[::step], rotation=90, fontsize=6)
    panel.set(ylabel=f"{kind} gone, %", ylim=(0, 100))
    panel.grid(alpha=0.3, axis="y")
    save(figure, path)


def ratios_by_setting(path: Path, ratios: Mapping[str, Mapping[str, Mapping[str, float]]], kind: str) -> None:
    """A panel for each setting, in it a line for each target: the share that went of each group of layers, in order.

    ratios: by setting, target and group. Source: layerwise training, Figures 3.4 to 3.20.
    """
    figure, panels = grid(len(ratios), 4.0, 2.6)
    for panel, (name, targets) in zip(panels, ratios.items(), strict=True):
        for target, shares in targets.items():
            panel.step(range(len(shares)), [100 * share for share in shares.values()], where="mid", label=target)
        panel.set_title(fill(name, 40), fontsize=8)
        panel.set(ylim=(0, 100), xlabel="layer", ylabel=f"{kind} gone, %")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def sensitivities(path: Path, losses: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Divergence of the outputs by the share of one group alone that goes: a line for each, coloured by its place."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panel, colours, last = figure.subplots(), colormaps["viridis"], max(1, len(losses) - 1)
    least = min((loss for points in losses.values() for _, loss in points if loss > 0), default=1e-6)
    for place, (name, points) in enumerate(losses.items()):
        shares, heights = [100 * share for share, _ in points], [max(loss, least) for _, loss in points]
        panel.semilogy(shares, heights, "o-", color=colours(place / last), markersize=3, label=name)
    panel.set(xlabel="gone of one group alone, %", ylabel="divergence of the outputs", xlim=(0, 100))
    panel.grid(alpha=0.3)
    if len(losses) <= _LEGEND:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    else:
        places = ScalarMappable(Normalize(1, len(losses)), colours)
        figure.colorbar(places, ax=panel, label="group, from input to output")
    save(figure, path)
