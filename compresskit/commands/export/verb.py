"""`compresskit export`: a checkpoint in another layout, or in a format that other programs load."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from compresskit.commands.export.inputs import batch_of, outputs_told, said_of, taken, told_of
from compresskit.commands.export.network import (
    difference,
    put_factors_together,
    put_groups,
    put_normalisation_inside,
    put_norms_away,
    put_probabilities_out,
)
from compresskit.commands.export.options import Options
from compresskit.commands.export.original import original_model, original_module, try_in_original
from compresskit.commands.export.quantised import quantise
from compresskit.commands.export.report import figures, times
from compresskit.commands.inspect.verb import normalisation
from compresskit.commands.parents import check_finite, check_fits, checkpoint_file
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, session
from compresskit.models.weights.files import read_state
from compresskit.models.weights.values import as_stored
from compresskit.numerics.outputs import largest_difference
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.exported.metadata import as_constants
from compresskit.storage.exported.onnx import write_onnx
from compresskit.storage.exported.program import write_program
from compresskit.storage.exported.source import write_source
from compresskit.storage.exported.state import STATES, state_of, write_state
from compresskit.storage.reading import file_hash
from compresskit.storage.record import provenance


def run(options: Options, progress: Progress) -> Result:
    """Writes one file, in the format that its name ends with; no data set is needed but for quantising."""
    path, out = checkpoint_file(options.model), options.out
    options.check(path)
    original = load(path)
    check_finite(original.network, path)
    result = Result("export", f"{path} to {out}")
    exported = _noted(original, path, options)
    inputs = _prepared(exported, path, options, result)
    told = told_of(original, inputs, inside=options.with_preprocessing, probabilities=options.probabilities)
    if out.suffix == ".onnx":
        told |= outputs_told(exported.network, inputs)
    if options.quantize:
        _quantise(original, path, exported, inputs, told, options, result, progress)
    elif out.suffix in STATES:
        _write_state(exported, inputs, told, options, result)
    else:
        read = _write(exported, inputs, told, out)
        result.checks[f"{out.name} read back"] = difference(read, exported.network, inputs)
    result.figures = figures(original, exported, path, out)
    if options.layout == "grouped" or options.fold_norms:
        result.figures += times(original, exported)
    given = [] if options.with_preprocessing else normalisation(original)
    result.notes += [*taken(inputs), *given, f"written to {out}"]
    result.details |= {**options.plain(), "format": out.suffix, "out": str(out), "told": told}
    return result


def _quantise(
    original: Checkpoint, path: Path, exported: Checkpoint, inputs: Any, told: dict[str, Any], options: Options,
    result: Result, progress: Progress,
) -> None:  # fmt: skip
    """By the recipe's data, which the checkpoint must fit."""
    assert options.recipe is not None
    arguments = Arguments(options.recipe, options.overrides, path, device="cpu")
    with (
        session("export", arguments, ("data",), progress, from_checkpoint=True) as current,
        TemporaryDirectory() as folder,
    ):
        check_fits(original, path, current.data)
        quantise(current, original, path, exported, inputs, told, options.out, Path(folder), result)


def _prepared(exported: Checkpoint, path: Path, options: Options, result: Result) -> Any:
    """Makes of the network what is asked for. Returns a batch that it takes."""
    inputs = batch_of(exported)
    if options.layout == "grouped":
        put_groups(exported, inputs, path, result)
    if options.out.suffix != ".pt":  # which may be trained further
        put_factors_together(exported, inputs, result)
    if options.fold_norms or options.quantize:  # into whole layers: norms stand behind factors, too
        put_norms_away(exported, inputs, result)
    if options.with_preprocessing:
        inputs = put_normalisation_inside(exported, inputs, result)
    if options.probabilities:
        put_probabilities_out(exported, result)
    return inputs


def _noted(original: Checkpoint, path: Path, options: Options) -> Checkpoint:
    """The checkpoint with this command in its history."""
    entry = {"verb": "export", "recipe": options.plain(), "metrics": {}, "parent": file_hash(path), "seed": None}
    return Checkpoint(**vars(original) | {"history": [*original.history, entry | provenance()]})


def _write_state(exported: Checkpoint, inputs: Any, told: dict[str, Any], options: Options, result: Result) -> None:
    model, into = original_model(exported, options)
    out, (state, constants) = options.out, state_of(exported.network)
    module, unstored = original_module(model, into, exported), list[str]()
    if isinstance(module, nn.Module):
        state, unstored = as_stored(module, state)
    write_state(state, out, told)
    for names, what in (
        (constants, "constants of the graph, which no class has,"),
        (unstored, "buffers, which its class makes itself,"),
    ):
        if names:
            result.notes.append(f"{len(names)} {what} are left out ({names[0]} first)")
    read = read_state(out).state
    result.checks[f"{out.name} read back"] = largest_difference([read[name] for name in state], list(state.values()))
    output = getattr(model, "output", None)
    try_in_original(module, output, into, exported.network, read, inputs, out, result)


def _write(exported: Checkpoint, inputs: Any, told: dict[str, Any], out: Path) -> Callable[[Any], Any]:
    """Returns the network of the file read back."""
    match out.suffix:
        case ".pt2":
            return write_program(exported.network, inputs, out, told)
        case ".onnx":
            return write_onnx(exported.network, inputs, out, told)
        case ".py":
            takes, constants = f"Takes {said_of(inputs)}.", as_constants(told)
            return write_source(exported.network, exported.input_shape, inputs, out, takes, constants)
    save(exported, out)
    return load(out).network
