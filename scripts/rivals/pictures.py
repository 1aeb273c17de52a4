"""Accuracy against MACs of one net: a panel for each kind of fine-tuning, a line for each method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rivals.methods import METHODS
from rivals.tables import UNTRAINED, Cells, before_match, kinds, reached

from compresskit.plots.panels import grid, save

MARKS = "osD^vP*X"


def draw(path: Path, told: Mapping[str, Any], cells: Cells) -> None:
    """told: of the trained net. Kinds of which nothing is measured have no panel."""
    lines = {kind: found for kind in kinds() if (found := points(cells, kind))}
    before = {place: before_match(cell) for place, cell in cells.items() if cell.method == "ours"}
    figure, panels = grid(max(1, len(lines)), 4.2, 4.2)
    for panel, (kind, methods) in zip(panels, lines.items(), strict=False):
        for place, name in enumerate(METHODS):
            if name in methods:
                shares, accuracies = zip(*methods[name], strict=True)
                panel.plot(shares, accuracies, color=f"C{place}", marker=MARKS[place], label=METHODS[name].label)
        if kind == UNTRAINED and (trainless := points(before, kind)):
            panel.plot(*zip(*trainless["ours"], strict=True), color="C0", linestyle="--", label="the same before match")
        panel.axhline(told["accuracy"], color="grey", linestyle=":", label="original")
        panel.set_title("without fine-tuning" if kind == UNTRAINED else f"fine-tuned: {kind}")
        panel.set_xlabel("MACs left, %")
    panels[0].set_ylabel(f"{told['label']}: test accuracy")
    panels[0].legend(fontsize="small")
    save(figure, path)


def points(cells: Cells, kind: str) -> dict[str, list[tuple[float, float]]]:
    """By method, the MACs that are left, in per cent, and the accuracy, from the smallest net on."""
    found: dict[str, list[tuple[float, float]]] = {}
    for (name, _), cell in sorted(cells.items(), key=lambda item: item[0][1]):
        accuracy = reached(cell, kind)
        if accuracy is not None and cell.macs is not None:
            found.setdefault(name, []).append((100 * cell.macs, accuracy))
    return found
