"""Where a new network starts: the recipe's model, with the weights, masks and layout that `train` gives it."""

from dataclasses import dataclass, field, replace
from math import prod

import torch

from compresskit.commands.parents import built
from compresskit.commands.recipe import Recipe
from compresskit.commands.session import Start
from compresskit.commands.train.section import FreshTraining, MaskedTraining, RamanujanTraining
from compresskit.data.dataset import DataSet
from compresskit.errors import RecipeError
from compresskit.graph.masks import Masks, apply_masks
from compresskit.passes.initialise.group import group
from compresskit.passes.initialise.network import DrawnLayer, initialise, regular_masks
from compresskit.passes.prune.masks import Masker


@dataclass(frozen=True)
class Nearest:
    """A layer of so many weights whose mask is the nearest that can be: the shares that were to be kept, and are."""

    name: str
    weights: int
    asked: float
    kept: float


@dataclass(frozen=True)
class InitialStart(Start):
    """drawn: layers that `train.init` has drawn. others: layers that it names no way for. nearest: see there."""

    drawn: list[DrawnLayer] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    nearest: list[Nearest] = field(default_factory=list)


def initial_start(recipe: Recipe, data: DataSet, device: torch.device, trial: int) -> InitialStart:
    """The network before any training: drawn, and masked where that is asked for before training.

    Raises RecipeError where layers cannot be drawn or masked so.
    """
    start = _drawn(recipe, data, trial)
    start = replace(start, network=start.network.to(device, torch.float32))
    if recipe.train is None or masked_later(recipe.train):
        return start
    return prepared(start, recipe.train, data, recipe.seed + trial)


def untrained_start(recipe: Recipe, data: DataSet, device: torch.device) -> InitialStart:
    """The first trial's network before any training, to be looked at. Raises RecipeError where training makes it."""
    if recipe.train is not None and (recipe.train.init == "expandnet" or masked_later(recipe.train)):
        key = "train.init: expandnet" if recipe.train.init == "expandnet" else "train.mask.when: after"
        raise RecipeError(
            f"{key} needs the verb `train`; run it and name its folder with --checkpoint, or drop the key"
        )
    return initial_start(recipe, data, device, trial=0)


def masked_later(options: FreshTraining) -> bool:
    """Whether masks come after a first training of the dense network."""
    return options.mask is not None and options.mask.when == "after"


def prepared(start: InitialStart, options: FreshTraining, data: DataSet, seed: int) -> InitialStart:
    """The start with the masks that `train.mask` asks for, set to zero in place, and in the layout of `train.layout`.

    Raises RecipeError for masks that cannot be, and where nothing can be grouped.
    """
    if options.mask is not None:
        start = replace(start, masks=_masks(start, options, data, seed))
        apply_masks(start.network, start.masks)
        if isinstance(options.mask, RamanujanTraining) and options.mask.nearest:
            start = replace(start, nearest=_nearest_masks(start.masks, options.mask))
    return start if options.layout == "masked" else _grouped(start)


def _drawn(recipe: Recipe, data: DataSet, trial: int) -> InitialStart:
    network, init = built(recipe, data, trial), recipe.train.init if recipe.train is not None else None
    if init is None:
        return InitialStart(network)
    ways = init if isinstance(init, tuple) else (init,)
    found = initialise(network, ways, data.input_shape, recipe.seed + trial)
    nearest = [
        Nearest(layer.name, prod(layer.shape), layer.asked, layer.degrees[1] / layer.shape[1])
        for layer in found.layers
        if layer.asked is not None
    ]
    return InitialStart(found.network, masks=found.masks, drawn=found.layers, others=found.others, nearest=nearest)


def _nearest_masks(masks: Masks, options: RamanujanTraining) -> list[Nearest]:
    return [
        Nearest(
            parameter.removesuffix(".weight"),
            mask.numel(),
            options.asked(*mask.shape[:2]),
            float(mask.sum()) / mask.numel(),
        )
        for parameter, mask in masks.items()
    ]


def _masks(start: InitialStart, options: FreshTraining, data: DataSet, seed: int) -> Masks:
    if isinstance(options.mask, MaskedTraining):
        masker = Masker(start.network, options.mask, data.input_shape, start.masks, seed, "train.mask")
        return masker.mask().masks
    if start.masks:
        raise RecipeError("train.mask: `train.init` has made the network sparse already; leave one of them out")
    assert isinstance(options.mask, RamanujanTraining)
    return dict(regular_masks(start.network, options.mask, seed))


def _grouped(start: InitialStart) -> InitialStart:
    found = group(start.network, start.masks)
    if not found.layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items()) or "there are no masks"
        raise RecipeError(f"train.layout: no layer can be grouped ({reasons}); draw layers by sao, or use masked")
    return replace(start, network=found.network, masks=found.masks)
