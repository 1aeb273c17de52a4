"""The figures and tables of `export`."""

from pathlib import Path

import torch

from compresskit.commands.export.inputs import BATCH
from compresskit.commands.export.options import files_of
from compresskit.commands.figures import latency
from compresskit.commands.result import NONZERO, SPARSE, Figure, Table, alike, by
from compresskit.graph.counting import count
from compresskit.graph.masks import kept
from compresskit.passes.fold.norms import Folded
from compresskit.passes.initialise.group import Grouped
from compresskit.storage.checkpoint import Checkpoint

_REPEATS = 20
_CPU = torch.device("cpu")


def figures(original: Checkpoint, exported: Checkpoint, path: Path, out: Path) -> list[Figure]:
    """Before and after."""
    counts = [count(each.network, each.input_shape) for each in (original, exported)]
    left = [kept(found, each.masks) for found, each in zip(counts, (original, exported), strict=True)]
    rows = {
        "parameters": [found.parameters for found in counts],
        NONZERO: [parameters for parameters, _ in left],
        "MACs": [found.macs for found in counts],
        SPARSE: [macs for _, macs in left],
    }
    shown = list(rows) if original.masks else ["parameters", "MACs"]
    figures = [Figure(name, (rows[name][0],), (rows[name][1],), "count") for name in shown]
    return [*figures, Figure("file", (path.stat().st_size,), (size(out),), "bytes")]


def size(out: Path) -> int:
    """Of all that was written, in bytes."""
    return sum(file.stat().st_size for file in files_of(out) if file.exists())


def times(original: Checkpoint, exported: Checkpoint) -> list[Figure]:
    """Of both networks in torch."""
    times = [latency(each.network, each.input_shape, _CPU, BATCH, _REPEATS) for each in (original, exported)]
    return [Figure(f"latency, batch {BATCH}, cpu", (times[0],), (times[1],), "ms")]


def layers_table(grouped: Grouped) -> Table:
    """A row for all layers that were grouped alike."""
    rows = alike((layer.name, (by(layer.shape), layer.groups, by(layer.blocks.degrees))) for layer in grouped.layers)
    return Table("grouped layers", ("layers", "number", "weight", "groups", "block"), rows)


def norms_table(folded: Folded) -> Table:
    rows = [(norm, ", ".join(layers)) for norm, layers in folded.layers.items()]
    return Table("folded batch norms", ("norm", "taken into"), rows)
