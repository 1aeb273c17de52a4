"""Whether an exported state dict loads into the class that the network came from: it is tried, and said."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from compresskit.commands.export.options import Options
from compresskit.commands.recipe import load_recipe
from compresskit.commands.result import Result
from compresskit.errors import CompresskitError, first_line
from compresskit.graph.capture import output_name
from compresskit.graph.shapes import node_shapes
from compresskit.models.calling import called, picked
from compresskit.models.factory import Factory
from compresskit.models.memory import within_memory
from compresskit.models.outside import Outside
from compresskit.models.registry import MODELS
from compresskit.models.weights.fitting import copy_into, fit
from compresskit.models.weights.values import own_tensors
from compresskit.numerics.outputs import largest_difference, tensors_of
from compresskit.recipes.build import build
from compresskit.recipes.hints import Kinds
from compresskit.recipes.yaml_reader import read_yaml
from compresskit.storage.checkpoint import Checkpoint

_EQUAL = 1e-3  # of the largest output: what the class gives differs by no more where it computes the same


@dataclass(frozen=True)
class Loaded:
    """What came of it. into: what made the module. how: "strict": load_state_dict; "fitted": `compresskit.load_state`
    alone, with the reason; "refused": neither, with the reason; "not tried", with the reason."""

    into: str
    how: str
    why: str = ""

    def said(self, out: Path) -> str:
        """A line for the report."""
        match self.how:
            case "strict":
                return f"{out.name} loads into {self.into} by load_state_dict"
            case "fitted":
                return (
                    f"{out.name} loads into {self.into} by compresskit.load_state, not by load_state_dict: {self.why}"
                )
            case "refused":
                return f"{out.name} does not load into {self.into}: {self.why}; a .py file is a class that fits it"
        return f"{out.name} was not tried in {self.into}: {self.why}"


def original_model(exported: Checkpoint, options: Options) -> tuple[Any, str]:
    """Options of what makes the module, or why it is not made; and its name. Raises RecipeError for a wrong --recipe.

    What a checkpoint names is made only where it is a library's: a file shall not choose which code is run.
    """
    if options.recipe is not None:
        model = load_recipe(options.recipe, options.overrides, verb="export", require=("model",)).section("model")
        return model, _name(vars(model))
    if "kind" not in exported.model:
        return "the checkpoint does not tell it", "the class that it was made of"
    into = _name(exported.model)
    if exported.model.get("kind") == "factory":
        return "it is code that a file names; give the recipe that names it with --recipe", into
    root, problems = read_yaml(json.dumps(exported.model))
    model, more = build(Annotated[Any, Kinds(MODELS)], root)
    return ("the checkpoint tells it in another way", into) if problems or more else (model, into)


def original_module(model: Any, into: str, exported: Checkpoint) -> "nn.Module | Loaded":
    """The module that `original_model` tells, with random weights, in eval mode; or that it is not tried."""
    if isinstance(model, str):
        return Loaded(into, "not tried", model)
    try:
        return _made(model, exported)
    except CompresskitError as error:
        return Loaded(into, "not tried", str(error))
    except Exception as error:  # a file's sizes, or the user's code
        return Loaded(into, "not tried", f"it cannot be made: {first_line(error)}")


def try_in_original(
    module: nn.Module | Loaded, output: str | int | None, into: str, network: nn.Module, state: Mapping[str, Tensor],
    inputs: Any, out: Path, result: Result,
) -> None:  # fmt: skip
    """Loads the state dict into what `original_module` gave, and compares its outputs with the network's on the batch.

    output: which of the values that forward returns.
    """
    loaded, difference = (
        (module, None) if isinstance(module, Loaded) else _tried(module, output, into, network, state, inputs)
    )
    if difference is not None:
        result.checks[f"{into} with {out.name}"] = difference
    result.notes.append(loaded.said(out))
    result.details["loads"] = vars(loaded)


def _tried(
    module: nn.Module, output: str | int | None, into: str, network: nn.Module, state: Mapping[str, Tensor], inputs: Any
) -> tuple[Loaded, float | None]:
    how, why = _load(module, state)
    if how == "refused":
        return Loaded(into, how, why), None
    try:
        with torch.inference_mode():
            found = _outputs(module, inputs, output)
    except Exception as error:  # it is the user's code
        return Loaded(into, "refused", f"names and shapes fit, but its forward fails: {first_line(error)}"), None
    with torch.inference_mode():
        expected = network(inputs)
    if (other := _shapes(found)) != _shapes(expected):
        why = f"names and shapes fit, but it returns {other} where the network returns {_shapes(expected)}"
        return Loaded(into, "refused", why), None
    scale = max((float(one.abs().max()) for one in tensors_of(expected) if one.numel()), default=0.0)
    difference = largest_difference(found, expected)
    if not difference <= _EQUAL * scale:
        how, why = "refused", f"names and shapes fit, but it computes something else ({difference:.1e} apart)"
    return Loaded(into, how, why), difference


def _name(model: dict[str, Any]) -> str:
    """As a recipe has it for short."""
    kind = str(model.get("kind"))
    return str(model.get("target")) if kind == "factory" else f"{kind}:{model['name']}" if "name" in model else kind


def _made(model: Any, exported: Checkpoint) -> nn.Module:
    """The module with random weights, in eval mode."""
    shape = exported.input_shape
    outputs = 0
    if isinstance(model, Outside):
        model = replace(model, weights=None, head="keep")
    if exported.task == "classification" or not isinstance(model, Factory):
        outputs = node_shapes(exported.network, shape)[output_name(exported.network)][1]
    with torch.random.fork_rng(devices=[]), within_memory():
        made: nn.Module = model.build(shape, outputs)
    return made.eval()


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Puts it into the module; how, and why not in a better way."""
    fitted, own = fit(module, state), own_tensors(module)
    if problems := fitted.problems():
        return "refused", problems
    copy_into(module, fitted.state)
    missing, notes = [name for name in own if name not in fitted.state], fitted.notes
    if missing:
        notes.append(f"{len(missing)} names of what only training has are missing, {missing[0]} first")
    try:
        module.load_state_dict(state)
    except Exception as error:  # its class may ask for more than tensors
        return "fitted", "; ".join(notes) or first_line(error)
    return "strict", ""


def _outputs(module: nn.Module, inputs: Any, output: str | int | None) -> Any:
    value = called(module, inputs)
    return value if output is None else picked(value, output)


def _shapes(value: Any) -> str:
    """Of the tensors that a network returned, in words."""
    return " and ".join(str(tuple(one.shape)) for one in tensors_of(value)) or "no numbers"
