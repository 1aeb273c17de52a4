"""Plots of `fuse`: fused against random, and what could be fused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from compresskit.plots.panels import Curves, band, save


def learning_curves(path: Path, curves: Mapping[str, tuple[Curves, Curves]], metric: str) -> None:
    """One panel a network: `metric` by epoch, fused against random, mean and standard deviation over trials.

    curves: by the network's name, one curve for each trial; a fused one starts at epoch 0, before any retraining.
    """
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, (fused, random)) in zip(panels, curves.items(), strict=True):
        band(panel, fused, 0, "fused", "tab:blue")
        band(panel, random, 1, "from random", "tab:orange")
        panel.set(title=name, xlabel="epoch", ylabel=metric)
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
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
