"""`compresskit expand`: trains a compact net as an expanded one, and multiplies it back."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.expand.report import EXPANDED, ExpandedTrial, expand_result, plan_result
from compresskit.commands.expand.section import STAGES, ExpandAndTrain
from compresskit.commands.expand.settings import Setting, settings, start_of
from compresskit.commands.jobs.job import Job, attempt, beside, placement, with_failures, worked
from compresskit.commands.memorisation import Train, check_memorisation, memorisation_jobs, memorise
from compresskit.commands.parents import MODEL
from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import (
    Arguments,
    Progress,
    Session,
    Start,
    folder_named,
    session,
    trial_folder,
    with_folder,
)
from compresskit.commands.train.section import FreshTraining, Memorisation
from compresskit.commands.trials import BEST, check_room, check_training, keep, train_network
from compresskit.data.own.targets import OWN
from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.graph.shapes import evaluating
from compresskit.numerics.outputs import tensors_of
from compresskit.passes.expand.network import Expansion, contract, expanded_layers, set_factors
from compresskit.training.loop import History
from compresskit.training.options import Training


def run(arguments: Arguments, progress: Progress) -> Result:
    """Expands, trains and contracts, or only the stages that the recipe names; trains the nets of `compare`, too."""
    trained = arguments.checkpoint is not None
    with session("expand", arguments, ("data", "expand"), progress, from_checkpoint=trained) as current:
        options: ExpandAndTrain = current.recipe.section("expand")
        _check(current, options)
        asked = settings(current.recipe)
        if arguments.task:
            return worked(current, _jobs(folder_named(current), asked))
        start, expansion = _start(current, asked[0], options, 0)
        starts = {asked[0].name: (start, expansion)} | {one.name: start_of(current, one, 0) for one in asked[1:]}
        networks = {name: found.network for name, (found, _) in starts.items()}
        for setting in asked:
            for training in _trainings(options, setting):
                with setting.named():
                    check_training(current, networks[setting.name], training)
        jobs = _jobs(folder_named(current), asked, networks)
        if arguments.dry_run:
            result = _plan(current, asked, networks, {name: found for name, (_, found) in starts.items()})
            result.notes += placement(current, jobs)
            return result
        current = with_folder(current)
        assert current.folder is not None
        if current.group.is_main:
            noise = _memorisation(current, options)
            check_room(current, networks.values(), current.folder.path, 1 + len(noise.label_noise if noise else ()))
        current = beside(current, jobs)
        result = expand_result(current, asked, _trials(current, options, asked))
        if (noise := _memorisation(current, options)) is not None:
            result.tables.append(memorise(current, noise, _nets(asked)))
        return with_failures(current, result)


def _jobs(
    current: Session, asked: Sequence[Setting], networks: Mapping[str, fx.GraphModule] | None = None
) -> list[Job]:
    """All trainings. networks: of which costs are taken, if they count."""
    options: ExpandAndTrain = current.recipe.section("expand")
    jobs = list[Job]()
    if "train" not in options.stages:
        return jobs

    def train(setting: Setting, trial: int) -> None:
        start, _ = _start(current, setting, options, trial)
        _train(
            current, setting, start.network, _folder(current, setting, trial), trial, _label(current, setting, trial)
        )

    def cost(setting: Setting) -> float:
        if networks is None:
            return 0.0
        epochs = sum(training.epochs for training in _trainings(options, setting))
        return epochs * count(networks[setting.name], current.data.input_shape).macs

    for setting in asked:
        trials = range(current.recipe.trials)
        jobs += [
            Job(_folder(current, setting, trial), partial(train, setting, trial), cost(setting)) for trial in trials
        ]
    if (noise := _memorisation(current, options)) is not None:
        jobs += memorisation_jobs(current, noise, _nets(asked), cost(asked[0]))
    return jobs


def _nets(asked: Sequence[Setting]) -> dict[str, Train]:
    """How `memorise` trains them."""
    return {setting.name: partial(_afresh, setting=setting) for setting in asked}


def _trials(current: Session, options: ExpandAndTrain, asked: Sequence[Setting]) -> dict[str, list[ExpandedTrial]]:
    """By network, those that did not fail. Raises what stopped the first where all did."""
    work = {
        (setting.name, _folder(current, setting, trial)): partial(_run_trial, current, options, setting, trial)
        for setting in asked
        for trial in range(current.recipe.trials)
    }
    found: dict[str, list[ExpandedTrial]] = {setting.name: [] for setting in asked}
    for (name, folder), each in work.items():
        if (trial := attempt(current, folder, each)) is not None:
            found[name].append(trial)
    if not any(found.values()):
        raise next(iter(current.failed.values()))
    return found


def _check(current: Session, options: ExpandAndTrain) -> None:
    """Refuses stages that do not fit what the run starts from."""
    first = options.stages[0]
    if first != "expand" and current.arguments.checkpoint is None:
        raise RecipeError(
            f"expand.stages: '{first}' goes on with what an earlier stage left; name its model.pt with --checkpoint"
        )
    if first == "expand" and current.recipe.model is None and current.arguments.checkpoint is None:
        raise RecipeError("expand: there is no net to expand; add the section `model`, or name one with --checkpoint")
    if current.recipe.train is not None:
        _check_start(current.recipe.train)
    check_memorisation(current, _memorisation(current, options))
    if current.recipe.train and current.recipe.train.memorisation and "train" in options.stages != STAGES:
        raise RecipeError("train.memorisation: its networks go through all stages; leave `expand.stages` out, or this")
    if "train" in options.stages and current.recipe.train is None:
        raise RecipeError("expand.stages: 'train' trains as the section `train` says, which is missing; add it")


def _check_start(train: FreshTraining) -> None:
    """Refuses keys of `train` that this verb would not heed."""
    given = {"init": train.init not in (None, "expandnet"), "mask": train.mask is not None}
    given |= {"layout": train.layout != "masked", "compare": train.compare is not None}
    for key in [key for key, is_given in given.items() if is_given]:
        raise RecipeError(f"train.{key}: only the verb `train` takes it; drop it with ~train.{key}")


def _memorisation(current: Session, options: ExpandAndTrain) -> Memorisation | None:
    return current.recipe.train.memorisation if current.recipe.train and options.stages == STAGES else None


def _trainings(options: ExpandAndTrain, setting: Setting) -> list[Training]:
    """All that one network goes through."""
    if setting.training is None or "train" not in options.stages:
        return []
    nonlinear = setting.expand is not None and setting.expand.init == "nonlinear"
    return [setting.training, *([options.init_train] if nonlinear and options.init_train is not None else [])]


def _afresh(current: Session, folder: Path, trial: int, label: str, setting: Setting) -> tuple[fx.GraphModule, History]:
    """A trial of a network, trained from its start on the session's data, of which only the errors are asked for."""
    assert setting.training is not None
    setting = replace(setting, training=replace(setting.training, gradient_confusion=None))
    start, _ = start_of(current, setting, trial)
    return start.network, _train(current, setting, start.network, folder, trial, label)


def _start(current: Session, setting: Setting, options: ExpandAndTrain, trial: int) -> tuple[Start, Expansion | None]:
    """The net of a trial: made now, or what an earlier stage left."""
    if options.stages[0] == "expand":
        if current.inputs and expanded_layers((start := current.parent(trial)).network):
            raise RecipeError(f"{start.path}: it is expanded already; go on with expand.stages=[train, contract]")
        return start_of(current, setting, trial)
    start = current.parent(trial)
    if not (layers := expanded_layers(start.network)):
        raise RecipeError(f"{start.path}: it has no expanded layers; name the model.pt that an earlier stage left")
    nonlinear = any(layer.nonlinear for layer in layers.values())
    if options.mode == "online" and nonlinear:
        raise RecipeError(f"expand.mode: online multiplies the factors, and those of {start.path} are nonlinear")
    if options.mode == "online" and any(layer.norms for layer in layers.values()):
        raise RecipeError(f"expand.mode: the branches of {start.path} have batch norms, which run one by one; drop it")
    if options.mode is not None:
        set_factors(start.network, mode=options.mode, nonlinear=nonlinear)
    if "contract" in options.stages:
        contract(start.network)  # refuses nonlinear factors before hours of training
    return start, None


def _plan(
    current: Session,
    asked: Sequence[Setting],
    networks: Mapping[str, fx.GraphModule],
    expansions: Mapping[str, Expansion | None],
) -> Result:
    """Networks by name, the recipe's own first."""
    result = Result("expand", f"{current.recipe.name} (dry run)", notes=["nothing was written"])
    if "train" in current.recipe.section("expand").stages:
        result = plan_training(current, next(iter(networks.values())), current.recipe.section("train"))
    counts = {name: count(network, current.data.input_shape) for name, network in networks.items()}
    return plan_result(result, asked, expansions, counts)


def _run_trial(current: Session, options: ExpandAndTrain, setting: Setting, trial: int) -> ExpandedTrial:
    """One trial of one network, from its start to model.pt; a run that was stopped goes on inside its training."""
    seed, folder = current.recipe.seed + trial, _folder(current, setting, trial)
    start, expansion = _start(current, setting, options, trial)
    label = _label(current, setting, trial)
    trains = "train" in options.stages
    history = _train(current, setting, start.network, folder, trial, label) if trains else None
    metrics = current.evaluate(start.network)
    contracts = "contract" in options.stages and bool(expanded_layers(start.network))
    path = folder / (EXPANDED if contracts else MODEL)
    keep(current, start.network, path, seed, metrics, start)
    figures = current.figures(start.network, metrics, path)
    found = ExpandedTrial(seed, folder / MODEL, expansion, history, trained=figures, final=figures)
    final = start.network
    if contracts:
        final = contract(start.network)
        found.difference, found.differing = _compared(current, start.network, final)
        metrics = current.evaluate(final)
        keep(current, final, found.path, seed, metrics, start)
        found.final = current.figures(final, metrics, found.path)
    if history is not None:
        found.best = _keep_best(current, start, history, folder, seed, contracts=contracts)
    found.reloaded = current.reload_difference(final, found.path)
    return found


def _label(current: Session, setting: Setting, trial: int) -> str:
    return f"{setting.name}, trial {trial + 1} of {current.recipe.trials}"


def _folder(current: Session, setting: Setting, trial: int) -> Path:
    assert current.folder is not None
    if not setting.folder:
        return trial_folder(current, trial, current.recipe.trials)
    return current.folder.path / setting.folder / f"trial-{trial + 1}"


def _train(
    current: Session, setting: Setting, network: fx.GraphModule, folder: Path, trial: int, label: str
) -> History:
    """Trains the net in place; with init: nonlinear, first with activations between its factors."""
    assert setting.training is not None
    options, seed = setting.expand, current.recipe.seed + trial
    if options is not None and options.init == "nonlinear" and expanded_layers(network):
        first = current.recipe.section("expand").init_train or setting.training
        set_factors(network, mode="sequential", nonlinear=True)
        train_network(current, network, first, seed, folder / "nonlinear", f"{label}, nonlinear")
        set_factors(network, mode=options.chosen_mode, nonlinear=options.nonlinear)
    return train_network(current, network, setting.training, seed, folder, label)


def _keep_best(
    current: Session, start: Start, history: History, folder: Path, seed: int, *, contracts: bool
) -> dict[str, float]:
    """Writes the best epoch's net, contracted if the last one is; returns its metrics."""
    best = copy.deepcopy(start.network)
    best.load_state_dict(history.best_state)
    best = contract(best) if contracts else best
    metrics = current.evaluate(best)
    keep(current, best, folder / BEST, seed, metrics, start)
    return metrics


def _compared(current: Session, expanded: fx.GraphModule, compact: fx.GraphModule) -> tuple[float, int]:
    """Over the test set: largest difference of outputs, relative to the largest one, and how many predictions differ.

    The expanded net runs its factors one after another, so that this is no comparison of a product with itself.
    A prediction is the class with the highest score, of an image or of a pixel.
    """
    largest, scale = (torch.zeros((), device=current.device) for _ in range(2))  # read once, at the end
    differing = torch.zeros((), dtype=torch.int64, device=current.device)
    expanded = copy.deepcopy(expanded)
    set_factors(expanded, mode="sequential")
    with torch.inference_mode(), evaluating(expanded), evaluating(compact):
        for inputs, _ in current.data.test.batches(current.recipe.moments.batch_size, current.device):
            for one, other in zip(tensors_of(expanded(inputs)), tensors_of(compact(inputs)), strict=True):
                largest, scale = largest.maximum((one - other).abs().max()), scale.maximum(one.abs().max())
                if current.data.task != OWN:
                    differing = differing + (one.argmax(1) != other.argmax(1)).sum()
    difference = largest / scale if scale > 0 else largest
    return float(difference), int(differing)
