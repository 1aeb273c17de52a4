"""`compresskit export`: a checkpoint in another layout, or in a format that other programs load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compresskit.commands.figures import NONZERO, SPARSE
from compresskit.commands.inspect.verb import normalisation
from compresskit.commands.parents import check_finite, checkpoint_file
from compresskit.commands.result import Figure, Result, Table, alike, by
from compresskit.errors import RecipeError, RunFolderError, UnsupportedModelError
from compresskit.graph.counting import count
from compresskit.graph.masks import kept
from compresskit.graph.shapes import example, tokens
from compresskit.numerics.outputs import largest_difference
from compresskit.passes.initialise.group import Grouped, group
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.exported import check_onnx, write_onnx, write_program
from compresskit.storage.reading import file_hash
from compresskit.storage.record import provenance

LAYOUTS = ("masked", "grouped")
FORMATS = (".pt", ".pt2", ".onnx")
_BATCH = 8  # samples of the batch that outputs are compared on


def run(model: Path, out: Path, layout: str, *, force: bool) -> Result:
    """Writes one file, in the format that its name ends with; no data set is needed."""
    path = checkpoint_file(model)
    _check(path, out, layout, force=force)
    original = load(path)
    check_finite(original.network, path)
    exported, grouped = _laid_out(original, path, layout)
    inputs = _batch(original)
    read = _write(exported, inputs, out)
    result = Result("export", f"{path} to {out}")
    result.figures = _figures(original, exported, path, out)
    with torch.inference_mode():
        expected, found = original.network(inputs), exported.network(inputs)
        if grouped is not None:
            result.tables, result.skipped = [_layers(grouped)], grouped.skipped
            result.checks["grouped layout against the masked one"] = largest_difference(found, expected)
        result.checks[f"{out.name} read back"] = largest_difference(read(inputs), found)
    result.notes = [*_taken(inputs), *normalisation(original), f"written to {out}"]
    result.details = {"layout": layout, "format": out.suffix, "out": str(out)}
    return result


def _batch(original: Checkpoint) -> Any:
    """Random inputs. Tokens are int64, as data give them, where the network makes the same of them as of numbers."""
    network, shape = original.network, original.input_shape
    inputs = example(network, shape, _BATCH, torch.Generator().manual_seed(0))
    several = isinstance(inputs, tuple)
    each = inputs if several else (inputs,)
    looked_up = [tokens(network, place if several else None) is not None for place in range(len(each))]
    whole = tuple(one.long() if token else one for one, token in zip(each, looked_up, strict=True))
    given = whole if several else whole[0]
    try:
        with torch.inference_mode():
            return given if largest_difference(network(given), network(inputs)) == 0 else inputs
    except RuntimeError:  # it reads them as numbers elsewhere
        return inputs


def _taken(inputs: Any) -> list[str]:
    """A line on the arguments that the network takes, where they are not one tensor of numbers."""
    several = isinstance(inputs, tuple)
    each = inputs if several else (inputs,)
    if not several and each[0].is_floating_point():
        return []
    told = [f"{str(one.dtype).removeprefix('torch.')} (N, {', '.join(map(str, one.shape[1:]))})" for one in each]
    named = [f"input_{place} {one}" for place, one in enumerate(told, 1)] if several else told
    return [f"takes {', '.join(named)}"]


def _check(path: Path, out: Path, layout: str, *, force: bool) -> None:
    """All that can be refused before anything is read."""
    if layout not in LAYOUTS:
        raise RecipeError(f"--layout: {layout!r} was given; allowed: {', '.join(LAYOUTS)}")
    if out.suffix not in FORMATS:
        raise RecipeError(f"--out: {out} ends with {out.suffix or 'no suffix'}; allowed: {', '.join(FORMATS)}")
    if out.suffix == ".onnx":
        check_onnx()
    if out.exists() and out.resolve() == path.resolve():
        raise RunFolderError(f"{out}: it is the input; write elsewhere with --out")
    if out.exists() and (out.is_dir() or not force):
        raise RunFolderError(f"{out}: it exists already; use --force to replace a file, or another --out")


def _laid_out(original: Checkpoint, path: Path, layout: str) -> tuple[Checkpoint, Grouped | None]:
    """What is written. Raises UnsupportedModelError where nothing can be grouped."""
    entry = {"verb": "export", "recipe": {"layout": layout}, "metrics": {}, "parent": file_hash(path), "seed": None}
    exported = Checkpoint(**vars(original) | {"history": [*original.history, entry | provenance()]})
    if layout == "masked":
        return exported, None
    grouped = group(original.network, original.masks)
    if not grouped.layers:
        reasons = [f"{name}: {reason}" for name, reason in grouped.skipped.items()] or ["it has no masks"]
        raise UnsupportedModelError(f"{path}: nothing could be grouped ({'; '.join(reasons)}); use --layout masked")
    exported.network, exported.masks = grouped.network, grouped.masks
    return exported, grouped


def _write(exported: Checkpoint, inputs: Any, out: Path) -> Callable[[Any], Any]:
    """Returns the network of the file read back."""
    if out.suffix == ".pt2":
        return write_program(exported.network, inputs, out)
    if out.suffix == ".onnx":
        return write_onnx(exported.network, inputs, out)
    save(exported, out)
    return load(out).network


def _figures(original: Checkpoint, exported: Checkpoint, path: Path, out: Path) -> list[Figure]:
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
    return [*figures, Figure("file", (path.stat().st_size,), (out.stat().st_size,), "bytes")]


def _layers(grouped: Grouped) -> Table:
    """A row for all layers that were grouped alike."""
    rows = alike((layer.name, (by(layer.shape), layer.groups, by(layer.blocks.degrees))) for layer in grouped.layers)
    return Table("grouped layers", ("layers", "number", "weight", "groups", "block"), rows)
