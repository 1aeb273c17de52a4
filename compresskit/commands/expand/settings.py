"""The networks that `expand` trains: the one that the recipe asks for, and those it is compared with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from compresskit.commands.expand.section import ExpandAndTrain, Variant
from compresskit.commands.recipe import Recipe
from compresskit.commands.session import Session, Start
from compresskit.errors import RecipeError
from compresskit.options import narrowed
from compresskit.passes.expand.network import Expansion, contract, expand
from compresskit.passes.expand.options import Expand
from compresskit.storage.run_folder import slug
from compresskit.training.options import Training


@dataclass(frozen=True)
class Setting:
    """One network to train. folder: below the run's, "" for the recipe's own. training: None where none is asked for.

    expand: None for the compact net. contracted: the compact net that an untrained expanded one makes is trained.
    """

    name: str
    folder: str
    expand: Expand | None
    training: Training | None
    contracted: bool = False

    @contextmanager
    def named(self) -> Iterator[None]:
        """Says of an error which entry of `compare` it is about."""
        try:
            yield
        except RecipeError as error:
            if not self.folder:
                raise
            raise RecipeError(f"expand.compare.{self.name}: {error}") from error


def settings(recipe: Recipe) -> list[Setting]:
    """The recipe's own, then those of `compare`. Raises RecipeError where one contradicts itself or another."""
    options: ExpandAndTrain = recipe.section("expand")
    training = None if recipe.train is None else narrowed(Training, recipe.train)
    own = Setting(describe(options), "", narrowed(Expand, options), training)
    found = [own, *(_varied(own, name, variant) for name, variant in options.compare.items())]
    for one in found[1:]:
        same = [other.name for other in found if one.folder == other.folder or one.name == other.name]
        if len(same) > 1:
            raise RecipeError(f"expand.compare: {' and '.join(same)} would share a row or a folder; rename one")
    return found


def describe(options: Expand) -> str:
    """Strategy and rate in words."""
    rates = options.rate.values() if isinstance(options.rate, dict) else [options.rate]
    return f"{options.strategy}, rate {' and '.join(f'{rate:g}' for rate in dict.fromkeys(rates))}"


def start_of(current: Session, setting: Setting, trial: int) -> tuple[Start, Expansion | None]:
    """What a trial of this setting trains, and how it was expanded, None for a compact net."""
    start = current.parent(trial) if current.inputs else current.fresh(trial)
    if setting.expand is None:
        return start, None
    with setting.named():
        options = _with_init(current, setting.expand)
        found = expand(start.network, options, current.recipe.seed + trial, partial(_tell, current, options))
    if setting.contracted:
        return replace(start, network=contract(found.network)), None
    return replace(start, network=found.network), found


def expandnet_start(current: Session, trial: int) -> Start:
    """The compact net that an untrained expanded one makes (ExpandNets, hypothesis 1), for `train.init: expandnet`."""
    if current.recipe.expand is None:
        raise RecipeError("train.init: expandnet starts from the net that the section `expand` describes; add it")
    options = replace(narrowed(Expand, current.recipe.expand), init="standard")
    setting = Setting("expandnet", "", options, None, contracted=True)
    return start_of(current, setting, trial)[0]


def _tell(current: Session, options: Expand, done: int, layers: int) -> None:
    if done == 0:
        current.progress.start("factors of trained layers" if options.init == "from_checkpoint" else "factors", layers)
    current.progress.update(done)


def _with_init(current: Session, options: Expand) -> Expand:
    """The options with the start that suits what there is: a trained net, or none."""
    if options.init == "from_checkpoint" and not current.inputs:
        raise RecipeError(
            "expand.init: from_checkpoint starts from a trained net; name one with --checkpoint, or give the model "
            "`weights`"
        )
    keeps = bool(current.inputs) and options.init is None and not options.nonlinear
    return replace(options, init="from_checkpoint") if keeps else options


def _varied(own: Setting, name: str, variant: Variant) -> Setting:
    given = {key.name: getattr(variant, key.name) for key in fields(Variant)}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    distill = changes.pop("distill", None)
    training = own.training
    if distill is not None and training is not None:
        training = replace(training, distill=None if distill == "none" else distill)
    where, folder = f"expand.compare.{name}", slug(name)
    if all(value is None for value in given.values()):
        raise RecipeError(f"{where}: it says nothing that differs from `expand`; give one of {', '.join(given)}")
    if not folder:
        raise RecipeError(f"{where}: a name needs a letter or a digit, for its folder; rename it")
    if changes.get("strategy") == "none":
        idle = [key for key in changes if key != "strategy"]
        if idle:
            raise RecipeError(
                f"{where}: strategy: none is the compact net, so {', '.join(idle)} mean nothing; drop them"
            )
        return Setting(name, f"compare/{folder}", None, training)
    contracted = changes.get("init") == "expandnet"
    if contracted:
        changes["init"] = "standard"  # untrained, even where the compact net is a trained one
    assert own.expand is not None
    try:
        expanded = replace(own.expand, **changes)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    return Setting(name, f"compare/{folder}", expanded, training, contracted)
