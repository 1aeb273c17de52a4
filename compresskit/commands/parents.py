"""What a command starts from: checkpoints, and whether they fit the recipe, or the recipe's model as a graph."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from compresskit.commands.recipe import Recipe
from compresskit.data.dataset import DataSet
from compresskit.data.own.targets import OWN
from compresskit.errors import CheckpointError, RecipeError
from compresskit.graph.capture import output_name
from compresskit.graph.shapes import node_shapes
from compresskit.graph.trace import trace
from compresskit.models.factory import Factory
from compresskit.models.memory import within_memory
from compresskit.models.outside import Outside
from compresskit.models.weights.fitting import load_weights
from compresskit.numerics.machine import total_memory
from compresskit.passes.expand.network import expanded_layers
from compresskit.storage.checkpoint import Checkpoint
from compresskit.training.inputs import check_inputs

MODEL = "model.pt"
SHIFT = 0.05  # of the inputs' scale: more than another draw of the training images would move their normalisation


def find_parents(path: Path | None, recipe: Recipe, verb: str) -> tuple[Path, ...]:
    """Checkpoint files that --checkpoint names: a file, or the trials of a run folder; () where the model has weights.

    Raises RecipeError or CheckpointError where there is none, or there are too few for the recipe's trials.
    """
    if path is None:
        if getattr(recipe.model, "weights", None) is None:
            raise RecipeError(
                f"--checkpoint: '{verb}' works on a trained net; name a model.pt or the folder of a run, "
                "or give the recipe's model `weights`"
            )
        return ()
    return in_folder(path, recipe.trials) if path.is_dir() else (path,)


def in_folder(path: Path, trials: int = 1) -> tuple[Path, ...]:
    """The run's model.pt, or those of its first `trials` trials where there are several."""
    if not (path / MODEL).exists():
        raise CheckpointError(f"{path}: no {MODEL} in this folder; name the folder of a run that has ended")
    numbered = [(re.fullmatch(r"trial-(\d+)", file.parent.name), file) for file in path.glob(f"trial-*/{MODEL}")]
    found = sorted((int(match[1]), file) for match, file in numbered if match)
    if trials == 1 or not found:
        return (path / MODEL,)
    if len(found) < trials:
        raise RecipeError(f"trials: {trials} were asked for, {path} holds {len(found)}; lower `trials`")
    return tuple(file for _, file in found[:trials])


def checkpoint_file(path: Path) -> Path:
    """The file itself, or model.pt of the run folder that `path` names. Raises CheckpointError where it has none."""
    return in_folder(path)[0] if path.is_dir() else path


def check_fits(checkpoint: Checkpoint, path: Path, data: DataSet) -> None:
    """Raises CheckpointError where the net was made for other inputs or outputs than the data have."""
    made_for, given = (checkpoint.task, checkpoint.input_shape), (data.task, data.input_shape)
    if made_for != given:
        raise CheckpointError(
            f"{path}: made for {made_for[0]} of inputs {made_for[1]}, the recipe's data is {given[0]} of inputs "
            f"{given[1]}; use the data that the net was trained on"
        )
    if data.task != OWN:
        outputs = node_shapes(checkpoint.network, checkpoint.input_shape)[output_name(checkpoint.network)][1]
        if outputs != data.outputs:
            raise CheckpointError(
                f"{path}: it has {outputs} outputs, the recipe's data {data.outputs}; use its own data"
            )
    mean, std = (checkpoint.preprocessing.get(name, []) for name in ("mean", "std"))
    if other_normalisation(mean, std, data):
        raise CheckpointError(
            f"{path}: trained on inputs of mean {mean} and deviation {std}, the recipe normalises by "
            f"{list(data.mean)} and {list(data.std)}; give the data that it was trained on, and `data.normalize` "
            "(auto or none) as in its training"
        )


def other_normalisation(mean: Sequence[float], std: Sequence[float], data: DataSet) -> bool:
    """Whether inputs that were normalised by these, where they were, are other inputs than those of the data."""
    if mean and data.mean and len(mean) != len(data.mean):  # of other channels, or some were tokens
        return True
    both = zip([*mean, *std], [*data.mean, *data.std], [*std, *std], strict=False)
    return any(abs(then - now) > SHIFT * scale for then, now, scale in both)


def not_finite(network: nn.Module) -> dict[str, str]:
    """By tensor, how many of its numbers are NaN or infinite, in words."""
    found = {name: tensor.isfinite().logical_not() for name, tensor in network.state_dict().items()}
    return {name: f"{int(bad.sum()):,} of {bad.numel():,} numbers" for name, bad in found.items() if bool(bad.any())}


def check_finite(network: nn.Module, path: Path) -> None:
    """Raises CheckpointError at weights that are not finite: nothing that is made of them is worth anything."""
    for name, told in not_finite(network).items():
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity ({told}); take a checkpoint from before the training went wrong"
        )


def check_contracted(checkpoint: Checkpoint, path: Path, verb: str) -> None:
    """Raises CheckpointError for a net with expanded layers, which fusing and reconstructing cannot read."""
    if found := expanded_layers(checkpoint.network):
        names = ", ".join(list(found)[:3]) + (", ..." if len(found) > 3 else "")
        raise CheckpointError(
            f"{path}: '{verb}' reads plain layers, but {names} are still products of factors; take the model.pt that "
            "`expand` left beside it, or make one with: compresskit expand RECIPE 'expand.stages=[contract]' "
            f"--checkpoint {path}"
        )


def check_unmasked(checkpoint: Checkpoint, path: Path, doing: str) -> None:
    """Raises CheckpointError for a net with masks, whose zeros would be lost in layers that are solved anew."""
    if checkpoint.masks:
        names = ", ".join(list(checkpoint.masks)[:3]) + (", ..." if len(checkpoint.masks) > 3 else "")
        raise CheckpointError(
            f"{path}: {doing} finds new weights for whole layers, which would undo the masks of this net ({names}); "
            "start from the net that was masked, and mask the result with `prune: {kind: weights, ...}`"
        )


def built(recipe: Recipe, data: DataSet, trial: int, weights: Path | None = None) -> fx.GraphModule:
    """The recipe's model for these data, traced, its weights drawn by torch from the trial's seed.

    weights: a state dict that it starts with, in the place of what the recipe names. Raises RecipeError for a model
    that does not fit the data or this machine's memory, CheckpointError for weights that do not fit the model,
    DataError for tokens that its tables lack.
    """
    model = recipe.section("model")
    if data.task == OWN and not isinstance(model, Factory):
        raise RecipeError(
            f"model: {model.kind} makes as many outputs as data have classes, and targets of any structure tell none; "
            "name a model of yours, kind: package.module:factory"
        )
    if not isinstance(model, Outside):
        _check_memory(model, data)
    elif weights is not None:
        model = replace(model, weights=str(weights))
    torch.manual_seed(recipe.seed + trial)
    with within_memory():
        made = model.build(data.input_shape, data.outputs)
    if weights is not None and not isinstance(model, Outside):
        load_weights(made, weights)
    output, lossy = (model.output, model.lossy_training) if isinstance(model, Outside) else (None, False)
    network = trace(
        made, data.input_shape, output=output, lossy_training=lossy, whole=data.task == OWN and output is None
    )
    check_inputs(network, data)
    return network


def _check_memory(model: Any, data: DataSet) -> None:
    """Raises RecipeError for a model that this machine could not hold with its gradients, before it is made."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = model.build(data.input_shape, data.outputs)
    except NotImplementedError:  # drawing its weights takes numbers
        return
    count = sum(parameter.numel() for parameter in network.parameters())
    if 8 * count > (memory := total_memory()):
        raise RecipeError(
            f"model: it would have {count:,} parameters, {8 * count / 1e9:,.0f} GB with their gradients, and this "
            f"machine has {memory / 1e9:,.0f} GB; lower its widths"
        )
