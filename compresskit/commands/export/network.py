"""What `export` does to a network before it is written, with the checks and tables of each step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compresskit.commands.export.inputs import stored, unit_of
from compresskit.commands.export.report import layers_table, norms_table
from compresskit.commands.result import Result
from compresskit.errors import RecipeError, UnsupportedModelError
from compresskit.numerics.outputs import largest_difference
from compresskit.passes.expand.network import contract, expanded_layers
from compresskit.passes.fold.ends import with_normalisation, with_probabilities
from compresskit.passes.fold.norms import fold_norms
from compresskit.passes.initialise.group import group
from compresskit.storage.checkpoint import Checkpoint


def difference(found: Callable[[Any], Any], expected: Callable[[Any], Any], inputs: Any) -> float:
    """The largest, of two networks on a batch."""
    with torch.inference_mode():
        return largest_difference(found(inputs), expected(inputs))


def put_groups(exported: Checkpoint, inputs: Any, path: Path, result: Result) -> None:
    """Puts grouped layers in the place of masked ones. Raises UnsupportedModelError where nothing can be grouped."""
    grouped = group(exported.network, exported.masks)
    if not grouped.layers:
        reasons = [f"{name}: {reason}" for name, reason in grouped.skipped.items()] or ["it has no masks"]
        raise UnsupportedModelError(f"{path}: nothing could be grouped ({'; '.join(reasons)}); use --layout masked")
    result.tables.append(layers_table(grouped))
    result.skipped |= grouped.skipped
    result.checks["grouped layout against the masked one"] = difference(grouped.network, exported.network, inputs)
    exported.network, exported.masks = grouped.network, grouped.masks


def put_norms_away(exported: Checkpoint, inputs: Any, result: Result) -> None:
    """Takes batch norms into the layers beside them."""
    folded = fold_norms(exported.network, exported.input_shape, exported.masks)
    result.tables.append(norms_table(folded))
    result.skipped |= folded.left
    result.notes.append(f"batch norms: {len(folded.layers)} folded, {len(folded.left)} left")
    result.checks["norms folded"] = difference(folded.network, exported.network, inputs)
    exported.network = folded.network


def put_factors_together(exported: Checkpoint, inputs: Any, result: Result) -> None:
    """Multiplies expanded layers back, which are for training."""
    if expanded_layers(exported.network):
        compact = contract(exported.network)
        result.checks["expanded layers multiplied back"] = difference(compact, exported.network, inputs)
        exported.network = compact


def put_normalisation_inside(exported: Checkpoint, inputs: Any, result: Result) -> Tensor:
    """Takes inputs as data store them from now on; returns such a batch. Raises RecipeError where that is not known."""
    mean, std = (exported.preprocessing.get(key) for key in ("mean", "std"))
    if not isinstance(inputs, Tensor) or not mean or not std or len(mean) != inputs.shape[1]:
        raise RecipeError(
            "--with-preprocessing: it is for one input whose normalisation the checkpoint tells; leave it out"
        )
    raw, unit = stored(exported, inputs)
    made = with_normalisation(exported.network, mean, std, unit, raw.ndim)
    network, ones = exported.network, [1] * (raw.ndim - 2)
    shift, scale = (torch.tensor(values).view(-1, *ones) for values in (mean, std))

    def expected(batch: Tensor) -> Any:
        return network((batch.float() / unit - shift) / scale)

    result.checks["inputs normalised inside"] = difference(made, expected, raw)
    inside = f"(x{' / 255' if unit > 1 else ''} - mean) / std"
    guessed = "; the checkpoint does not tell that its data are bytes, images are taken for that"
    result.notes.append(f"inside: {inside}{guessed if unit > 1 and unit_of(exported) is None else ''}")
    exported.network = made
    return raw


def put_probabilities_out(exported: Checkpoint, result: Result) -> None:
    """Returns probabilities of classes. Raises RecipeError for a network of another task."""
    if exported.task != "classification":
        raise RecipeError(f"--probabilities: they are of classes, this network is for {exported.task}; leave it out")
    exported.network = with_probabilities(exported.network)
    result.notes.append("inside: softmax, it returns probabilities")
