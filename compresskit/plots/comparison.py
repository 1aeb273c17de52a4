"""The plot of a comparison of settings: a metric by size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from compresskit.plots.panels import save


def comparison(
    path: Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    metric: str,
    size: str = "size, % of the original",
) -> None:
    """`metric` against the share of the original size, a line for each setting."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    for name, points in lines.items():
        style = ("-", "--", ":")[list(lines).index(name) // 10 % 3]  # ten colours, then they come again
        xs, ys = [100 * size for size, _ in points], [value for _, value in points]
        panel.plot(xs, ys, style, marker=".", label=name)
    panel.set(xlabel=size, ylabel=metric)
    panel.legend(frameon=False, fontsize=9 if len(lines) < 8 else 5)
    panel.grid(alpha=0.3)
    save(figure, path)
