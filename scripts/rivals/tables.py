"""The tables of the page, from the cells that there are; what is missing is said."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rivals.cells import Cell, trained
from rivals.methods import METHODS, Package

SIZES, EPOCHS = (70, 50, 30, 20), (1, 3)
PACKAGES = [name for name, method in METHODS.items() if isinstance(method, Package)]
ROWS: list[tuple[str, str]] = [  # of a net's table: method and stage
    *(("ours", "cut"), ("ours", "norms"), ("ours-parallel", "parallel"), ("ours", "top-down"), ("ours", "match")),
    *(("ours", trained(count)) for count in EPOCHS),
    *(("magnitude-repaired", stage) for stage in ("cut", "norms", "top-down", *map(trained, EPOCHS))),
    *((name, stage) for name in PACKAGES for stage in ("cut", "norms", *map(trained, EPOCHS))),
]
LABELS = {name: method.label for name, method in METHODS.items()} | {"ours-parallel": METHODS["ours"].label}
MISSING, FAILED, UNTAKEN = "–", "fails", " (not taken)"
UNTRAINED, MATCH = "none", "match"  # no training behind the method; what trains within ours
COMPARED = [  # ours, and the packages
    ("before match", UNTRAINED),
    (MATCH, UNTRAINED),
    (MATCH, trained(1)),
    *((trained(count), trained(count)) for count in EPOCHS),
]
Nets, Table = Mapping[str, Mapping[str, Any]], dict[str, Any]  # by name: what is told of a trained net
Cells = Mapping[tuple[str, float], Cell]  # of one net, by method and size


def tables(nets: Nets, own: Mapping[str, Cells]) -> list[Table]:
    """own: by net, its cells."""
    sizes = [percent(size) for size in SIZES]
    return [
        table("nets", ["net", "test accuracy", "parameters", "MACs", "cells"], net_rows(nets, own)),
        table("ahead", ["net", "ours", "packages", *sizes], ahead_rows(nets, own)),
        *(table(told["label"], ["method", "stage", *sizes], rows(own[net])) for net, told in nets.items()),
        table("versions", ["package", "version"], version_rows(own)),
        table("failed", ["net", "method", "MACs", "what it said"], failed_rows(nets, own)),
    ]


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    return {"title": title, "columns": columns, "rows": rows}


def percent(size: float) -> str:
    return f"{size:g} %"


def rows(cells: Cells) -> list[list[str]]:
    """Of one net; the best of what had the same training is bold in its column."""
    best = {(size, kind): most(cells, size, kind) for size in SIZES for kind in kinds()}
    found = []
    for method, stage in ROWS:
        kind = stage if stage in kinds() else UNTRAINED
        shown = [said(cells.get((method, size)), stage, best[size, kind]) for size in SIZES]
        found.append([LABELS[method], stage, *shown])
    return found


def kinds() -> list[str]:
    return [UNTRAINED, *map(trained, EPOCHS)]


def most(cells: Cells, size: float, kind: str) -> float:
    """The best accuracy at a size with one kind of training, 0 for none."""
    shown = [(method, stage) for method, stage in ROWS if (stage if stage in kinds() else UNTRAINED) == kind]
    found = [cells[method, size].stage(stage) for method, stage in shown if (method, size) in cells]
    return max((stage["accuracy"] for stage in found if stage), default=0.0)


def said(cell: Cell | None, stage: str, best: float) -> str:
    if cell is None or (cell.failed is None and cell.stage(stage) is None):
        return MISSING
    if cell.failed is not None:
        return FAILED
    told = cell.stage(stage)
    assert told is not None
    number = f"{told['accuracy']:.4f}"
    return (f"**{number}**" if told["accuracy"] == best else number) + ("" if told["taken"] else UNTAKEN)


def reached(cell: Cell | None, kind: str) -> float | None:
    """Test accuracy of the net that a method leaves, or of that one fine-tuned."""
    if cell is None or not cell.stages:
        return None
    if kind != UNTRAINED:
        told = cell.stage(kind)
        return None if told is None else float(told["accuracy"])
    left = [told for told in cell.stages if told["stage"] not in kinds() and told["taken"]]
    return float(left[-1]["accuracy"])


def before_match(cell: Cell) -> Cell:
    """The same without the stage that trains, and what came behind it."""
    names = [told["stage"] for told in cell.stages]
    return replace(cell, stages=cell.stages[: names.index(MATCH)] if MATCH in names else cell.stages)


def ahead_rows(nets: Nets, own: Mapping[str, Cells]) -> list[list[str]]:
    """Points of accuracy by which ours is better than the best package, and which that is."""
    return [
        [told["label"], ours, theirs, *(ahead(own[net], size, ours, theirs) for size in SIZES)]
        for net, told in nets.items()
        for ours, theirs in COMPARED
    ]


def ahead(cells: Cells, size: float, ours: str, theirs: str) -> str:
    cell = cells.get(("ours", size))
    own = reached(cell, ours) if ours in kinds() else None
    if cell is not None and ours not in kinds():
        own = reached(cell if ours == MATCH else before_match(cell), UNTRAINED)
    rivals = {name: found for name in PACKAGES if (found := reached(cells.get((name, size)), theirs)) is not None}
    if own is None or not rivals:
        return MISSING
    best = max(rivals, key=lambda name: rivals[name])
    return f"{100 * (own - rivals[best]):+.2f} ({LABELS[best]})"


def net_rows(nets: Nets, own: Mapping[str, Cells]) -> list[list[Any]]:
    """The trained nets, and how many of their cells are there, without and with each fine-tuning."""
    whole = len(METHODS) * len(SIZES)
    return [
        [told["label"], told["accuracy"], told["parameters"], told["macs"], f"{len(own[net])} of {whole}"]
        for net, told in nets.items()
    ]


def version_rows(own: Mapping[str, Cells]) -> list[list[str]]:
    """What measured the cells; several where it was updated in between."""
    found: dict[str, set[str]] = {}
    for cell in (cell for cells in own.values() for cell in cells.values()):
        for package, version in cell.versions.items():
            found.setdefault(package, set()).add(version)
    return [[package, ", ".join(sorted(found[package]))] for package in sorted(found)]


def failed_rows(nets: Nets, own: Mapping[str, Cells]) -> list[list[str]]:
    return [
        [told["label"], METHODS[cell.method].label, percent(cell.size), cell.failed.replace("|", "/")]
        for net, told in nets.items()
        for cell in own[net].values()
        if cell.failed is not None
    ]
