"""What networks are in size: each of their layers, and several beside each other."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from compresskit.plots.panels import grid, save

Sizes = Mapping[str, tuple[int, int]]  # of each layer, its parameters and its multiply-accumulates

_NAMED = 60  # layers on an axis, above which only some have a name
_COLOURS = ("tab:grey", "tab:blue")


def layer_sizes(path: Path, networks: Mapping[str, Sizes]) -> None:
    """Parameters above and MACs below, a bar for each layer of each network, in % of all that the first one has.

    networks: one, or two of which the second is a compressed first; their layers keep their order.
    """
    names = list(dict.fromkeys(name for sizes in networks.values() for name in sizes))
    figure = Figure(figsize=(max(6.0, min(18.0, 0.25 * len(names))), 6), layout="constrained")
    width, colours = 0.8 / len(networks), _COLOURS[-len(networks) :]
    panels = figure.subplots(2, 1, sharex=True)
    for which, (panel, label) in enumerate(zip(panels, ("parameters", "MACs"), strict=True)):
        whole = sum(size[which] for size in next(iter(networks.values())).values()) or 1
        for number, (network, sizes) in enumerate(networks.items()):
            places = [names.index(name) + (number + 0.5) * width - 0.4 for name in sizes]
            shares = [100 * size[which] / whole for size in sizes.values()]
            panel.bar(places, shares, width, color=colours[number], label=network)
        panel.set(ylabel=f"{label}, %")
        panel.grid(alpha=0.3, axis="y")
    step = -(-len(names) // _NAMED)
    panel.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)
    if len(networks) > 1:
        panels[0].legend(frameon=False)
    save(figure, path)


def side_by_side(path: Path, panels: Mapping[str, Mapping[str, tuple[float, str]]]) -> None:
    """In each panel, by the figure's name, a bar for each network, with its value and how that is written.

    A value that is not finite has no bar.
    """
    figure, axes = grid(len(panels), 3.0, 1.6, columns=3)
    for panel, (name, values) in zip(axes, panels.items(), strict=True):
        lengths = [value if math.isfinite(value) else 0.0 for value, _ in values.values()]
        bars = panel.barh(list(values), lengths, color=[f"C{number}" for number in range(len(values))])
        panel.bar_label(bars, [text for _, text in values.values()], padding=3, fontsize=8)
        panel.set(title=name)
        panel.margins(x=0.35)  # for what is written behind the longest bar
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    save(figure, path, svg=False)
