"""What a report says of how a new network was drawn."""

from typing import Any

from compresskit.commands.result import Result, Table, alike, by, shortened
from compresskit.commands.train.initial import InitialStart, Nearest
from compresskit.passes.initialise.network import DrawnLayer

COLUMNS = ("layers", "number", "drawn by", "weight", "c", "d", "kept", "lambda 1", "times", "lambda 2", "bound")


def add_drawn(result: Result, start: InitialStart) -> None:
    """A row for all layers that were drawn alike; of sparse ones with the eigenvalues of their graph.

    c: outputs that an input feeds. d: inputs that an output sees. times: how often the largest eigenvalue comes.
    lambda 2: the largest of the others, which stays below the bound of Ramanujan graphs.
    Where the nearest sparsity was taken, another table has what was asked for and what was reached.
    """
    _add_nearest(result, start.nearest)
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


def _add_nearest(result: Result, layers: list[Nearest]) -> None:
    if not layers:
        return
    rows = alike((layer.name, (f"{1 - layer.asked:.2%}", f"{1 - layer.kept:.2%}")) for layer in layers)
    result.tables.append(Table("sparsity as near as can be", ("layers", "number", "asked", "reached"), rows))
    asked, kept = (sum(layer.weights * getattr(layer, share) for layer in layers) for share in ("asked", "kept"))
    whole = sum(layer.weights for layer in layers)
    result.notes.append(
        f"nearest: of the {whole:,} weights of these layers {1 - asked / whole:.2%} were to go, and "
        f"{1 - kept / whole:.2%} went; a layer can keep 1 / g of them, g a common divisor of its sides"
    )
