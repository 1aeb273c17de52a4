"""Eigenvalues of the graphs of masks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compresskit.numerics.sparse.ramanujan import Graph
from compresskit.plots.panels import grid, save

_BINS = 81  # an odd number, so that 0 lies in the middle of one
_SHOWN = 16  # panels


def graph_eigenvalues(path: Path, layers: Mapping[str, Graph]) -> None:
    """A panel for each kind of mask, with the share of its graph's eigenvalues by their value and, as dashed lines, the
    bound that a Ramanujan graph's second one keeps, with both signs (SAO, Fig. 7)."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for name, graph in layers.items():
        alike = graph.eigenvalues.numpy().round(6) + 0.0  # there is no -0 then
        kinds.setdefault((graph.sides, graph.degrees, alike.tobytes()), []).append(name)
    shown = list(kinds.values())[:_SHOWN]
    figure, panels = grid(len(shown), 3.4, 2.8)
    for panel, names in zip(panels, shown, strict=True):
        graph = layers[names[0]]
        values, bound = graph.eigenvalues.numpy(), graph.expansion.bound
        edge = 1.1 * max(float(values[0]), bound)
        panel.hist(values, np.linspace(-edge, edge, _BINS + 1).tolist(), weights=np.full(len(values), 1 / len(values)))
        for sign in (-1, 1):
            panel.axvline(sign * bound, color="tab:red", linestyle="--", linewidth=0.8)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        c, d = graph.degrees
        verdict = "Ramanujan" if graph.expansion.is_ramanujan else "not Ramanujan"
        panel.set_title(f"{names[0]}{more}: {graph.sides[0]}×{graph.sides[1]}\nc {c:g}, d {d:g}, {verdict}", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.supxlabel("eigenvalue")
    figure.supylabel("share")
    save(figure, path)
