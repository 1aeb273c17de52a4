"""What every plot is made of: a grid of panels, and a file that appears whole."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compresskit.storage.atomic import atomic_write

COLUMNS = 4  # panels side by side


def grid(count: int, width: float, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each of that size in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
