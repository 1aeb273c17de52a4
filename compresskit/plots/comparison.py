"""The plot of a comparison of settings: a metric by size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from compresskit.plots.panels import save


def comparison(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    size: str = "size, % of the original",
    *,
    joined: bool = True,
) -> None:
    """In each panel, by the metric's name, that metric against the share of the original size, a line for each setting.

    joined: false where there are many settings of about one size, whose points no line should join.
    """
    figure = Figure(figsize=(7 * len(panels), 4.5), layout="constrained")
    for panel, (metric, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            style = ("-", "--", ":")[number // 10 % 3] if joined else ""  # ten colours, then they come again
            xs, ys = [100 * size for size, _ in points], [value for _, value in points]
            panel.plot(xs, ys, style, marker=".", color=f"C{number % 10}", label=name)
        panel.set(xlabel=size, ylabel=metric)
        panel.legend(frameon=False, fontsize=9 if len(lines) < 8 else 5)
        panel.grid(alpha=0.3)
    save(figure, path)
