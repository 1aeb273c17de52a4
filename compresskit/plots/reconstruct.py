"""Plots of `reconstruct`: what each layer loses for what it drops."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from compresskit.plots.panels import grid, save

_SMALLEST = 1e-8  # below it an error is rounding, and a logarithmic scale shows nothing else


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
        panel.minorticks_off()  # of a hundred panels they take a third of the time
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
    save(figure, path)
