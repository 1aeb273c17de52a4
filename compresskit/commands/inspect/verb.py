"""`compresskit inspect`: what a checkpoint holds, and how it came to be."""

import shlex
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from compresskit.commands.figures import said
from compresskit.commands.parents import checkpoint_file, not_finite
from compresskit.commands.plan import layer_table
from compresskit.commands.result import NONZERO, SPARSE, Figure, Result, Table
from compresskit.graph.counting import Counts, count
from compresskit.graph.doors.entry import Entry
from compresskit.graph.masks import kept
from compresskit.graph.shapes import tokens
from compresskit.shapes import shapes_of
from compresskit.storage.checkpoint import Checkpoint, load
from compresskit.storage.exported.metadata import EXPORTED, read_metadata
from compresskit.storage.reading import file_hash


def run(path: Path) -> Result:
    """Sizes, layers and history of a checkpoint, or of that in the folder of a run; no data set is needed."""
    path = checkpoint_file(path)
    if path.suffix in EXPORTED:
        return _exported(path)
    checkpoint = load(path)
    counts = count(checkpoint.network, checkpoint.input_shape)
    result = Result("inspect", str(path))
    result.figures = [
        Figure("parameters", (), (counts.parameters,), "count"),
        Figure("MACs", (), (counts.macs,), "count"),
        *_of_masks(checkpoint, counts),
        Figure("file", (), (path.stat().st_size,), "bytes"),
    ]
    rows = [_entry(entry) for entry in checkpoint.history]
    history = Table("history", ("verb", "seed", "metrics", "command", "torch", "git"), rows)
    result.tables = [layer_table(checkpoint.network, checkpoint.input_shape, checkpoint.masks), history]
    model = checkpoint.model.get("kind", "unknown")
    inputs = " and ".join("×".join(map(str, shape)) for shape in shapes_of(checkpoint.input_shape))
    result.notes = [
        f"{checkpoint.task} of inputs {inputs}, model {model}",
        f"sha256 {file_hash(path)}",
        *normalisation(checkpoint),
        *_came_in(checkpoint),
        *(f"{name} holds NaN or infinity: {told}" for name, told in not_finite(checkpoint.network).items()),
    ]
    result.details = {
        "model": checkpoint.model,
        "preprocessing": checkpoint.preprocessing,
        "history": checkpoint.history,
    }
    return result


def _exported(path: Path) -> Result:
    """What a file tells that `export` wrote for other programs."""
    told = read_metadata(path)
    result = Result("inspect", str(path))
    result.figures = [Figure("file", (), (path.stat().st_size,), "bytes")]
    result.tables = [Table("what the file tells", ("key", "value"), [(key, str(value)) for key, value in told.items()])]
    if not told:
        result.notes = ["it tells nothing of itself: it was not written by export, or by an older one"]
    result.details = {"told": told}
    return result


def normalisation(checkpoint: Checkpoint) -> list[str]:
    """A line on how inputs are normalised, where they are; of several inputs one for each that is no tokens."""
    mean, std = (checkpoint.preprocessing.get(key, []) for key in ("mean", "std"))
    if not mean:
        return []
    shapes = enumerate(shapes_of(checkpoint.input_shape), 1)
    channels = {n: shape[0] for n, shape in shapes if tokens(checkpoint.network, n - 1) is None}
    if isinstance(checkpoint.input_shape[0], int) or sum(channels.values()) != len(mean):
        return [f"inputs are normalised: mean {_short(mean)}, std {_short(std)}"]
    ends = dict(zip(channels, accumulate(channels.values()), strict=True))
    places = {n: slice(end - channels[n], end) for n, end in ends.items()}
    return [f"input {n} is normalised: mean {_short(mean[at])}, std {_short(std[at])}" for n, at in places.items()]


def _came_in(checkpoint: Checkpoint) -> list[str]:
    """A line for each time that a model was made a graph, by which door, and what that graph takes for granted."""
    entries = [entry["entry"] for entry in checkpoint.history if isinstance(entry.get("entry"), dict)]
    return [str(Entry(entry["door"], assumed=entry["assumed"])) for entry in entries]


def _of_masks(checkpoint: Checkpoint, counts: Counts) -> list[Figure]:
    parameters, macs = kept(counts, checkpoint.masks)
    masked = [Figure(NONZERO, (), (parameters,), "count"), Figure(SPARSE, (), (macs,), "count")]
    return masked if checkpoint.masks else []


def _entry(entry: dict[str, Any]) -> tuple[Any, ...]:
    return (
        entry.get("verb", ""),
        entry.get("seed"),
        said(entry.get("metrics", {})),
        shlex.join(entry.get("command", [])),
        entry.get("versions", {}).get("torch", ""),
        (entry.get("git") or "")[:8],
    )


def _short(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
