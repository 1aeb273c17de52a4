"""`compresskit export`: a checkpoint in another layout, or in a format that other programs load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compresskit.commands.export.options import Options
from compresskit.commands.figures import latency
from compresskit.commands.inspect.verb import normalisation
from compresskit.commands.parents import check_finite, checkpoint_file
from compresskit.commands.result import NONZERO, SPARSE, Figure, Result, Table, alike, by
from compresskit.errors import UnsupportedModelError
from compresskit.graph.counting import count
from compresskit.graph.masks import kept
from compresskit.graph.shapes import example, tokens
from compresskit.numerics.outputs import largest_difference
from compresskit.passes.expand.network import contract, expanded_layers
from compresskit.passes.fold.norms import Folded, fold_norms
from compresskit.passes.initialise.group import Grouped, group
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.exported.onnx import write_onnx
from compresskit.storage.exported.program import write_program
from compresskit.storage.exported.source import weights_of, write_source
from compresskit.storage.reading import file_hash
from compresskit.storage.record import provenance

_BATCH = 8  # samples of the batch that outputs are compared on, and that is timed
_REPEATS = 20
_CPU = torch.device("cpu")


def run(options: Options) -> Result:
    """Writes one file, in the format that its name ends with; no data set is needed."""
    path, out = checkpoint_file(options.model), options.out
    options.check(path)
    original = load(path)
    check_finite(original.network, path)
    result = Result("export", f"{path} to {out}")
    inputs = _batch(original)
    exported = _noted(original, path, options)
    if options.layout == "grouped":
        _group(exported, inputs, path, result)
    if options.fold_norms:
        _fold(exported, inputs, result)
    if out.suffix == ".py":
        _contract(exported, inputs, result)
    read = _write(exported, inputs, out)
    result.figures = [*_figures(original, exported, path, out), *_times(original, exported, options)]
    result.checks[f"{out.name} read back"] = _difference(read, exported.network, inputs)
    result.notes += [*_taken(inputs), *normalisation(original), f"written to {out}"]
    result.details = {**options.plain(), "format": out.suffix, "out": str(out)}
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
    return [] if not several and inputs.is_floating_point() else [f"takes {_told(inputs)}"]


def _told(inputs: Any) -> str:
    """Types and shapes of the arguments."""
    several = isinstance(inputs, tuple)
    each = inputs if several else (inputs,)
    told = [f"{str(one.dtype).removeprefix('torch.')} (N, {', '.join(map(str, one.shape[1:]))})" for one in each]
    return ", ".join(f"input_{place} {one}" for place, one in enumerate(told, 1)) if several else told[0]


def _noted(original: Checkpoint, path: Path, options: Options) -> Checkpoint:
    """The checkpoint with this command in its history."""
    entry = {"verb": "export", "recipe": options.plain(), "metrics": {}, "parent": file_hash(path), "seed": None}
    return Checkpoint(**vars(original) | {"history": [*original.history, entry | provenance()]})


def _group(exported: Checkpoint, inputs: Any, path: Path, result: Result) -> None:
    """Puts grouped layers in the place of masked ones. Raises UnsupportedModelError where nothing can be grouped."""
    grouped = group(exported.network, exported.masks)
    if not grouped.layers:
        reasons = [f"{name}: {reason}" for name, reason in grouped.skipped.items()] or ["it has no masks"]
        raise UnsupportedModelError(f"{path}: nothing could be grouped ({'; '.join(reasons)}); use --layout masked")
    result.tables.append(_layers(grouped))
    result.skipped |= grouped.skipped
    found = _difference(grouped.network, exported.network, inputs)
    result.checks["grouped layout against the masked one"] = found
    exported.network, exported.masks = grouped.network, grouped.masks


def _contract(exported: Checkpoint, inputs: Any, result: Result) -> None:
    """Multiplies expanded layers back, which are for training."""
    if expanded_layers(exported.network):
        compact = contract(exported.network)
        result.checks["expanded layers multiplied back"] = _difference(compact, exported.network, inputs)
        exported.network = compact


def _fold(exported: Checkpoint, inputs: Any, result: Result) -> None:
    """Takes batch norms into the layers beside them."""
    folded = fold_norms(exported.network, exported.input_shape, exported.masks)
    result.tables.append(_norms(folded))
    result.skipped |= folded.left
    result.notes.append(f"batch norms: {len(folded.layers)} folded, {len(folded.left)} left")
    result.checks["norms folded"] = _difference(folded.network, exported.network, inputs)
    exported.network = folded.network


def _difference(found: Callable[[Any], Any], expected: Callable[[Any], Any], inputs: Any) -> float:
    with torch.inference_mode():
        return largest_difference(found(inputs), expected(inputs))


def _write(exported: Checkpoint, inputs: Any, out: Path) -> Callable[[Any], Any]:
    """Returns the network of the file read back."""
    if out.suffix == ".pt2":
        return write_program(exported.network, inputs, out)
    if out.suffix == ".onnx":
        return write_onnx(exported.network, inputs, out)
    if out.suffix == ".py":
        takes = f"Takes {_told(inputs)}."
        return write_source(exported.network, exported.input_shape, inputs, out, takes, {})
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
    return [*figures, Figure("file", (path.stat().st_size,), (_size(out),), "bytes")]


def _size(out: Path) -> int:
    """Of all that was written, in bytes."""
    return out.stat().st_size + (weights_of(out).stat().st_size if out.suffix == ".py" else 0)


def _times(original: Checkpoint, exported: Checkpoint, options: Options) -> list[Figure]:
    """Of both networks in torch, where the layers are other ones."""
    if options.layout == "masked" and not options.fold_norms:
        return []
    times = [latency(each.network, each.input_shape, _CPU, _BATCH, _REPEATS) for each in (original, exported)]
    return [Figure(f"latency, batch {_BATCH}, cpu", (times[0],), (times[1],), "ms")]


def _layers(grouped: Grouped) -> Table:
    """A row for all layers that were grouped alike."""
    rows = alike((layer.name, (by(layer.shape), layer.groups, by(layer.blocks.degrees))) for layer in grouped.layers)
    return Table("grouped layers", ("layers", "number", "weight", "groups", "block"), rows)


def _norms(folded: Folded) -> Table:
    rows = [(norm, ", ".join(layers)) for norm, layers in folded.layers.items()]
    return Table("folded batch norms", ("norm", "taken into"), rows)
