"""What a report says of how a new network was drawn."""

from typing import Any

from compresskit.commands.result import Result, Table, alike, by, shortened
from compresskit.commands.train.initial import InitialStart
from compresskit.passes.initialise.network import DrawnLayer

COLUMNS = ("layers", "number", "drawn by", "weight", "c", "d", "kept", "lambda 1", "times", "lambda 2", "bound")


def add_drawn(result: Result, start: InitialStart) -> None:
    """A row for all layers that were drawn alike; of sparse ones with the eigenvalues of their graph.

    c: outputs that an input feeds. d: inputs that an output sees. times: how often the largest eigenvalue comes.
    lambda 2: the largest of the others, which stays below the bound of Ramanujan graphs.
    """
    if not start.drawn:
        return
    rows = alike((layer.name, (layer.kind, by(layer.shape), *_of_graph(layer))) for layer in start.drawn)
    result.tables.append(Table("layers as they were drawn", COLUMNS, rows))
    if start.others:
        result.notes.append(f"train.init leaves layers as torch draws them: {shortened(start.others)}")


def _of_graph(layer: DrawnLayer) -> tuple[Any, ...]:
    if layer.expansion is None:
        return ("",) * 7
    c, d = layer.degrees
    found = layer.expansion
    return c, d, f"{d / layer.shape[1]:.2%}", found.first, found.components, round(found.second, 9), found.bound
