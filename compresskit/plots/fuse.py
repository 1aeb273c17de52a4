"""Plots of `fuse`: fused against random, and what could be fused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from compresskit.plots.panels import Curves, band, grid, save

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")


def learning_curves(path: Path, panels: Mapping[str, Mapping[str, Curves]], metric: str) -> None:
    """One panel a network: `metric` by epoch, mean and standard deviation over trials (FuseInit, Figure 2).

    panels: by the network's name, the curves of each start, one for each trial. The first start is the fused net, which
    begins at epoch 0, before any retraining, and the last the net that it came from, in grey.
    """
    figure, axes = grid(len(panels), 4.2, 3.4)
    for panel, (name, starts) in zip(axes, panels.items(), strict=True):
        *mine, original = starts.items()
        for number, (label, curves) in enumerate(mine):
            band(panel, curves, 0 if number == 0 else 1, label, _COLOURS[number])
        band(panel, original[1], 1, original[0], "tab:gray")
        panel.set(title=name, xlabel="epoch", ylabel=metric.replace("_", " "))
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
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
