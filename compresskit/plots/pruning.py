"""How much of each layer went."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from compresskit.plots.panels import save

_NAMED = 60  # layers on an axis, above which only some have a name


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
