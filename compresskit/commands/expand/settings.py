"""The networks that `expand` trains: the one that the recipe asks for, and those it is compared with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import fx

from compresskit.commands.expand.section import ExpandAndTrain, Variant
from compresskit.commands.recipe import Recipe
from compresskit.commands.session import Session, Start
from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.options import narrowed
from compresskit.passes.expand.network import Expansion, contract, expand
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.rates import StepCost, auto_rates, rate_below
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
    own = Setting(describe(options), "", narrowed(Expand, options), _training(recipe))
    found = [own, *(_varied(own, name, variant) for name, variant in options.compare.items())]
    for one in found[1:]:
        same = [other.name for other in found if one.folder == other.folder or one.name == other.name]
        if len(same) > 1:
            raise RecipeError(f"expand.compare: {' and '.join(same)} would share a row or a folder; rename one")
    return found


def describe(options: Expand) -> str:
    """Strategy and rate in words."""
    rates = " and ".join(f"{rate:g}" for rate in dict.fromkeys(options.rates)) or f"auto below {options.limit:g}"
    return f"{options.strategy}, rate {rates}"


def start_of(current: Session, setting: Setting, trial: int) -> tuple[Start, Expansion | None]:
    """What a trial of this setting trains, and how it was expanded, None for a compact net."""
    start = current.parent(trial) if current.inputs else current.fresh(trial)
    if setting.expand is None:
        return start, None
    with setting.named():
        found = _expanded(current, setting, start.network, current.recipe.seed + trial)
    if setting.contracted:
        if setting.expand.norms:
            raise RecipeError("expandnet: acnet-bn would leave a net without its batch norms; use another strategy")
        return replace(start, network=contract(found.network)), None
    return replace(start, network=found.network), found


def expandnet_start(current: Session, trial: int) -> Start:
    """The compact net that an untrained expanded one makes (ExpandNets, hypothesis 1), for `train.init: expandnet`."""
    if current.recipe.expand is None:
        raise RecipeError("train.init: expandnet starts from the net that the section `expand` describes; add it")
    options = replace(narrowed(Expand, current.recipe.expand), init="standard")
    setting = Setting("expandnet", "", options, _training(current.recipe), contracted=True)
    return start_of(current, setting, trial)[0]


def _training(recipe: Recipe) -> Training | None:
    return None if recipe.train is None else narrowed(Training, recipe.train)


def _expanded(current: Session, setting: Setting, network: fx.GraphModule, seed: int) -> Expansion:
    """With the rates that `auto` chooses, and what a step of training costs, where there is one."""
    assert setting.expand is not None
    options = _with_init(current, setting.expand)
    counts = count(network, current.data.input_shape)
    batch = _batch(current, setting.training)
    left: dict[str, str] = {}
    macs = {layer.name: layer.macs * (batch or 0) for layer in counts.layers}
    if options.rate == "auto":
        if batch is None:
            raise RecipeError("expand.rate: auto weighs the batches of a training; add the section `train`")
        rates, left = auto_rates(network, options, macs)
        if not rates:
            raise RecipeError(
                f"expand.rate: auto finds no layer for which a rate of 1 stays below expand.limit: {options.limit:g}; "
                "raise the limit or train.batch_size, or give a rate"
            )
        options = replace(options, rate=rates)
    found = expand(network, options, seed, partial(_tell, current, options))
    if batch is None:
        return replace(found, skipped=found.skipped | left)
    online, names = options.chosen_mode == "online", [layer.name for layer in found.layers]
    cost = StepCost(
        compact=3 * batch * counts.macs,
        layers=3 * batch * (counts if online else count(found.network, current.data.input_shape)).macs,
        products=3 * sum(layer.product_macs for layer in found.layers) if online else 0,
        parameters=sum(parameter.numel() for parameter in found.network.parameters()),
        batch=batch,
        limit=options.limit,
        rate_below=rate_below(network, options, names, (options.limit - 1) * batch * counts.macs),
        auto=bool(auto_rates(network, options, macs)[0]),
        separate=options.separate,
    )
    return replace(found, skipped=found.skipped | left, cost=cost)


def _batch(current: Session, train: Training | None) -> int | None:
    """Samples of a process for which products are formed once."""
    if train is None:
        return None
    parts = train.accumulate if train.compile else 1
    return max(1, min(train.batch_size, len(current.data.train)) // (current.group.world * parts))


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
    if keeps and options.norms:
        raise RecipeError(
            "expand.strategy: acnet-bn has batch norms, with which no branches are what was trained; use acnet, or set "
            "expand.init: standard to draw them afresh"
        )
    return replace(options, init="from_checkpoint") if keeps else options


def _varied(own: Setting, name: str, variant: Variant) -> Setting:
    given = {key.name: getattr(variant, key.name) for key in fields(Variant)}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    training, distill = changes.pop("train", own.training), changes.pop("distill", None)
    if distill is not None and training is not None:
        training = replace(training, distill=None if distill == "none" else distill)
    where, folder = f"expand.compare.{name}", slug(name)
    if not changes and distill is None and training == own.training:
        raise RecipeError(f"{where}: it says nothing that differs from `expand`; give one of {', '.join(given)}")
    if not folder:
        raise RecipeError(f"{where}: a name needs a letter or a digit, for its folder; rename it")
    if changes.get("strategy") == "none":
        idle, expandnet = [key for key in changes if key != "strategy"], changes.get("init") == "expandnet"
        if idle:
            raise RecipeError(
                f"{where}: strategy: none is the compact net, for which {', '.join(idle)} can say nothing; leave out "
                + ("strategy: none, for init: expandnet trains it compact, too" if expandnet else "what is named")
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
