"""`compresskit prune`: takes channels out, or masks weights or kernels, and retrains, in one step or in several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import fx

from compresskit.commands.analyses import draw_rates
from compresskit.commands.jobs.job import (
    Job,
    attempt,
    beside,
    check_not_timed,
    placement,
    with_failures,
    worked,
)
from compresskit.commands.parents import MODEL, check_unmasked
from compresskit.commands.prune.channels import prune_channels, pruner
from compresskit.commands.prune.compare import Compared, Options, Setting, settings
from compresskit.commands.prune.report import PrunedTrial, plan_result, prune_result
from compresskit.commands.prune.section import MaskAndRetrain
from compresskit.commands.prune.stages import PRUNED, STEP, PruneStep, Retrained
from compresskit.commands.prune.weights import masker, prune_weights
from compresskit.commands.repair.fitting import check_fits, copies
from compresskit.commands.result import Result
from compresskit.commands.session import (
    Arguments,
    Progress,
    Session,
    Start,
    folder_named,
    run_path,
    session,
    trial_folder,
    with_folder,
)
from compresskit.commands.trials import check_room, check_training, keep, plain_parent, train_network
from compresskit.graph.counting import count
from compresskit.passes.prune.channels import Pruner
from compresskit.passes.prune.masks import Masker
from compresskit.storage.checkpoint import load


def run(arguments: Arguments, progress: Progress) -> Result:
    """Prunes a trained net; writes pruned.pt, as it was before retraining, and model.pt."""
    with session("prune", arguments, ("data", "prune"), progress, from_checkpoint=True) as current:
        options: Options = current.recipe.section("prune")
        inside = folder_named(current)
        if arguments.task:
            return worked(current, _jobs(inside, options))
        check_not_timed(current, _jobs(inside, options), options.target.goal == "latency")
        start = _start(current, options, 0)
        plan = _planned(current, options, start, current.recipe.seed)
        others = [setting.options for setting in settings(options)]
        plans = [plan, *(_planned(current, other, start, current.recipe.seed) for other in others)]
        jobs = _jobs(inside, options, _costs(current, start, (options, *others), plans))
        trainings = [one.retrain for one in (options, *others) if one.retrain is not None]
        for number, training in enumerate(trainings):
            if training not in trainings[:number]:
                check_training(current, start.network, training, start.network)
        for other in (options, *others):
            check_fits(current, other)
        if current.group.is_main:
            passing = max(copies(other) for other in (options, *others))
            runs = options.steps * (1 + len(others))
            check_room(current, [start.network], run_path(current), runs, passing=passing)
        if arguments.dry_run:
            result = plan_result(current, options, plan)
            result.notes += placement(current, jobs)
            return result
        current = beside(with_folder(current), jobs)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        found = [own for own, _ in trials if own is not None]
        return with_failures(current, prune_result(current, options, found, [compared for _, compared in trials]))


def _jobs(current: Session, options: Options, costs: Sequence[float] = ()) -> list[Job]:
    """The pruning that is kept, and those that are compared with it, of each trial. costs: of these, one after another,
    where they count."""

    def prune(trial: int, asked: Options, folder: Path) -> None:
        _work(current, trial).prune(asked, _start(current, options, trial), folder)

    beside_it = settings(options)
    own, *others = costs or [0.0] * (1 + len(beside_it))
    jobs = list[Job]()
    for trial in range(current.recipe.trials):
        folder = trial_folder(current, trial, current.recipe.trials)
        jobs.append(Job(folder, partial(prune, trial, options, folder), own))
        for setting, cost in zip(beside_it, others, strict=True):
            if not _is_own(setting, options):
                below = _folder_of(setting, folder)
                jobs.append(Job(below, partial(prune, trial, setting.options, below), cost))
    return jobs


def _costs(current: Session, start: Start, asked: Sequence[Options], plans: Sequence[Pruner | Masker]) -> list[float]:
    """Of the retraining of each; masks make no step of it cheaper."""
    macs, found = count(start.network, current.data.input_shape).macs, list[float]()
    for options, plan in zip(asked, plans, strict=True):
        epochs = options.retrain.epochs * options.steps if options.retrain is not None else 0
        left = 1.0 if isinstance(options, MaskAndRetrain) else plan.asked / plan.now
        found.append(epochs * macs * left)
    return found


def _is_own(setting: Setting, options: Options) -> bool:
    """Whether a comparison names what is kept."""
    return setting.options == replace(options, compare=None)


def _folder_of(setting: Setting, folder: Path) -> Path:
    """Of a setting, in that of its trial."""
    return folder / "compare" / setting.folder


def _start(current: Session, options: Options, trial: int) -> Start:
    return current.parent(trial) if isinstance(options, MaskAndRetrain) else plain_parent(current, trial)


def _planned(current: Session, options: Options, start: Start, seed: int) -> Pruner | Masker:
    """All that can be refused before any work."""
    if isinstance(options, MaskAndRetrain):
        return masker(current, options, start, seed)
    if start.checkpoint is not None and start.path is not None:
        check_unmasked(start.checkpoint, start.path, "pruning channels")
    return pruner(current, options, start.network)


def _run_trial(current: Session, options: Options, trial: int) -> tuple[PrunedTrial | None, list[Compared]]:
    """The pruning that is kept, and those that are compared with it; what failed is left out."""
    folder, start = trial_folder(current, trial, current.recipe.trials), _start(current, options, trial)
    work = _work(current, trial)
    own = attempt(current, folder, partial(_run_own, work, options, start, folder))
    compared = list[Compared]()
    for setting in settings(options):
        if _is_own(setting, options):
            ended = (own.steps, own.retrained) if own is not None else None
        else:
            current.progress.log(f"seed {work.seed}: {setting.at}, {setting.line}")
            below = _folder_of(setting, folder)
            pruned = attempt(current, below, partial(work.prune, setting.options, start, below))
            ended = pruned[1:] if pruned is not None else None
        if ended is not None:
            steps, retrained = ended
            last = retrained[-1] if retrained else None
            rows = last.history.rows if last else []
            compared.append(Compared(setting, steps, last.metrics if last else None, rows))
    return own, compared


def _run_own(work: "_Work", options: Options, start: Start, folder: Path) -> PrunedTrial:
    current, path = work.current, folder / MODEL
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path, start.masks)
    pruned, steps, retrained = work.prune(options, start, folder)
    metrics = retrained[-1].metrics if retrained else steps[-1].repaired
    after, reloaded = current.figures(pruned.network, metrics, path, pruned.masks), current.reload_difference
    found = PrunedTrial(work.seed, path, before, after, reloaded(pruned.network, path), steps, retrained)
    if current.recipe.trials > 1:
        found.judged = (
            metrics if current.data.validation is None else current.evaluate(pruned.network, current.held_out)
        )
    return found


def _work(current: Session, trial: int) -> "_Work":
    moments = trial_folder(current, trial, current.recipe.trials) / "moments"
    return _Work(current, moments, current.recipe.seed + trial)


@dataclass(frozen=True)
class _Work:
    """Prunings of one network. moments: folder of its own ones, which all of them use."""

    current: Session
    moments: Path
    seed: int

    def prune(self, options: Options, start: Start, folder: Path) -> tuple[Start, list[PruneStep], list[Retrained]]:
        """All steps, into model.pt of the folder: the network with its masks, the steps, and what followed each."""
        current, seed = self.current, self.seed
        plan, steps, retrained = _planned(current, options, start, seed), list[PruneStep](), list[Retrained]()
        left, original = plan.now, start.network
        for number in range(1, options.steps + 1):
            if left <= plan.asked:
                break  # a step takes whole channels or kernels, and so more than its share
            whole = left
            left *= (plan.asked / left) ** (1 / (options.steps + 1 - number))
            own = folder / f"step-{number}" if options.steps > 1 else folder
            now = _at(options, left, plan.whole)
            start, step = self._step(
                now, start, original, own, self._moments(options, own, number), whole, steps[-1] if steps else None
            )  # fmt: skip
            steps.append(step)
            left = step.got
            if options.retrain is not None:
                label = f"retrain seed {seed}" + (f", step {number} of {options.steps}" if options.steps > 1 else "")
                path = own / "retrain"
                history = train_network(
                    current, start.network, options.retrain, seed, path, label, start.masks, original
                )
                retrained.append(Retrained(current.evaluate(start.network), replace(history, best_state={})))
                if options.retrain.layerwise_rates is not None:
                    draw_rates(current, path, history, options.retrain.layerwise_rates)
        metrics = retrained[-1].metrics if retrained else steps[-1].repaired
        keep(current, start.network, folder / MODEL, seed, metrics, start)
        return start, steps, retrained

    def _moments(self, options: Options, folder: Path, number: int) -> Path:
        """One folder for the network as it was given, whatever the setting; others for what steps and repairs left."""
        chained = options.repair == "top-down"
        return folder / "moments" if chained or number > 1 else self.moments

    def _step(
        self, options: Options, start: Start, original: fx.GraphModule, folder: Path, moments: Path,
        whole: float, before: PruneStep | None,
    ) -> tuple[Start, PruneStep]:  # fmt: skip
        """Where the next step starts, and what this one did; read back where an interrupted run had finished it."""
        current = self.current
        if not (current.arguments.resume and (folder / STEP).exists()):
            if isinstance(options, MaskAndRetrain):
                step = prune_weights(current, options, start, original, folder, self.seed, moments)
            else:
                step = prune_channels(current, options, start, original, folder, self.seed, moments, whole, before)
            step.write(current, folder)
        pruned = load(folder / PRUNED, current.device)
        return replace(start, network=pruned.network, masks=pruned.masks), PruneStep.read(folder)


def _at(options: Options, limit: float, whole: float) -> Options:
    """The same step with another limit for what is left of `whole`; a comparison is of the first target's goal."""
    if isinstance(options, MaskAndRetrain):
        return replace(options, target=options.target.at(limit, whole), compare=None)
    return replace(options, target=options.target.at(limit))
