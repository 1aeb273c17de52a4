"""What every plot is made of: a grid of panels, bands of curves, and a file that appears whole."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from compresskit.plots.svg import write_svg
from compresskit.storage.atomic import atomic_write

Curves = Sequence[Sequence[float]]

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


def save(figure: Figure, path: Path, *, svg: bool = True) -> None:
    """As a PNG, and beside it as the SVG that report.html shows. svg: false where there is no such page."""
    with warnings.catch_warnings():
        # by the clock: on a busy machine any legend takes the second at which matplotlib warns
        warnings.filterwarnings("ignore", 'Creating legend with loc="best"', UserWarning)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        if svg:
            with atomic_write(path.with_suffix(".svg")) as temporary:
                write_svg(figure, temporary)


def band(panel: Axes, curves: Curves, first: int | NDArray[np.intp], label: str, colour: str) -> None:
    """Mean by epoch, counted from `first` or at those given, and the standard deviation around it; one curve for each
    trial."""
    if not curves:
        return
    values = np.array(curves)
    epochs = np.arange(first, first + values.shape[1]) if isinstance(first, int) else first
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    panel.plot(epochs, mean, color=colour, label=label, marker=".")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
