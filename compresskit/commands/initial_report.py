"""What a report says of how a new network was drawn."""

from typing import Any

from compresskit.commands.initial import InitialStart
from compresskit.commands.result import Result, Table, by
from compresskit.passes.initialise import DrawnLayer

COLUMNS = ("layers", "number", "drawn by", "weight", "c", "d", "kept", "lambda 1", "times", "lambda 2", "bound")


def add_drawn(result: Result, start: InitialStart) -> None:
    """A row for all layers that were drawn alike; of sparse ones with the eigenvalues of their graph.

    c: outputs that an input feeds. d: inputs that an output sees. times: how often the largest eigenvalue comes.
    lambda 2: the largest of the others, which stays below the bound of Ramanujan graphs.
    """
    if not start.drawn:
        return
    alike: dict[tuple[Any, ...], list[str]] = {}
    for layer in start.drawn:
        alike.setdefault((layer.kind, layer.shape, *_of_graph(layer)), []).append(layer.name)
    rows: list[tuple[Any, ...]] = [
        (_named(names), len(names), kind, by(shape), *graph) for (kind, shape, *graph), names in alike.items()
    ]
    result.tables.append(Table("layers as they were drawn", COLUMNS, rows))
    if start.others:
        result.notes.append(f"train.init leaves layers as torch draws them: {_named(start.others)}")


def _of_graph(layer: DrawnLayer) -> tuple[Any, ...]:
    if layer.expansion is None:
        return ("",) * 7
    c, d = layer.degrees
    found = layer.expansion
    return c, d, f"{d / layer.shape[1]:.2%}", found.first, found.components, round(found.second, 9), found.bound


def _named(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"
