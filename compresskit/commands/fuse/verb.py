"""`compresskit fuse`: fuses the layers that the recipe names, or chooses them, and retrains if asked."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

from torch import fx

from compresskit.commands.fuse.baselines import baselines, trained_epochs
from compresskit.commands.fuse.records import FusedTrial, Ranking, Step, read_step
from compresskit.commands.fuse.report import fuse_result, plan_result
from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.commands.fuse.steps import FuseSteps
from compresskit.commands.jobs.job import Job, attempts, beside, placement, with_failures, worked
from compresskit.commands.moments import temporary_folder
from compresskit.commands.parents import MODEL
from compresskit.commands.result import Result, counted
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
from compresskit.commands.trials import check_training, keep
from compresskit.errors import RecipeError
from compresskit.passes.fuse.auto import size
from compresskit.passes.fuse.fusible import Fusible
from compresskit.storage.atomic import write_json
from compresskit.storage.checkpoint import load

FUSED, FUSED_STEP = "fused.pt", "fused.json"  # of a step, before its training
STEP = "step.json"
RANKING = "candidates.json"


def run(arguments: Arguments, progress: Progress, *, ranked: bool = True) -> Result:
    """Fuses one chain after another, each with its moments, its error on held-out images and its retraining.

    ranked: whether a dry run of `layers: auto` takes the moments that rank the candidates, or only lists these.
    """
    with session("fuse", arguments, ("data", "fuse"), progress, from_checkpoint=True) as current:
        options: FuseAndRetrain = current.recipe.section("fuse")
        inside = folder_named(current)
        trained = cache(lambda trial: trained_epochs(inside.parent(trial)))
        jobs, later = _jobs(inside, options), partial(_baseline_jobs, inside, options, trained)
        if arguments.task:
            return worked(current, [*jobs, *later()])
        if options.layers == "auto" and options.until is None and not arguments.dry_run:
            raise RecipeError("fuse.until: `layers: auto` needs to know when to stop; --dry-run shows the candidates")
        planning = FuseSteps(current, options, 0, Path())
        beside_it = baselines(options, planning.trained, 1)
        for trial in range(1, current.recipe.trials) if "whole" in beside_it else ():  # before the first is trained
            baselines(options, trained(trial), 1)
        for settings in (options.retrain, *beside_it.values()):
            if settings is not None:
                check_training(current, planning.start.network, settings, planning.start.network)
        if arguments.dry_run:
            result = _plan(current, options, ranked)
            result.notes += placement(current, jobs, "networks from random weights" if beside_it else "")
            return result
        _chains(options, planning)
        if options.layers != "auto":  # which says it at each step
            progress.log(*_cost(options, planning))
        current = beside(with_folder(current), jobs, later if beside_it else None)
        work = {_folder(current, trial): partial(_run_trial, current, options, trial) for trial in range(len(jobs))}
        return with_failures(current, fuse_result(current, options, attempts(current, work)))


def _jobs(current: Session, options: FuseAndRetrain) -> list[Job]:
    """All steps of each trial, but for the networks that are trained beside."""
    trials = range(current.recipe.trials)
    return [Job(_folder(current, trial), partial(_fuse_all, current, options, trial)) for trial in trials]


def _baseline_jobs(current: Session, options: FuseAndRetrain, trained: Callable[[int], int | None]) -> list[Job]:
    """The networks from random weights beside those steps whose layers have been fused by now. trained: epochs of the
    net that a trial starts from."""

    def train(trial: int, index: int, stage: Path, name: str) -> None:
        steps = FuseSteps(current, options, trial, _folder(current, trial) / "moments")
        fused = load(stage / FUSED, current.device).network
        steps.train_beside(fused, read_step(stage / FUSED_STEP), stage, index, name)

    jobs = list[Job]()
    for trial in range(current.recipe.trials):
        for index in itertools.count(1):
            stage = _stage(_folder(current, trial), index)
            if not (stage / FUSED_STEP).exists():
                break
            names = baselines(options, trained(trial), index)
            macs = read_step(stage / FUSED_STEP).macs
            jobs += [
                Job(stage / name, partial(train, trial, index, stage, name), training.epochs * macs)
                for name, training in names.items()
            ]
    return jobs


def _fuse_all(current: Session, options: FuseAndRetrain, trial: int) -> None:
    """What takes long of a trial but for its baselines."""
    folder = _folder(current, trial)
    steps = FuseSteps(current, options, trial, folder / "moments")
    start = steps.start
    for index in itertools.count(1):
        if not _fused(current, steps, start, folder, index):
            return
        stage = _stage(folder, index)
        step, network = read_step(stage / FUSED_STEP), load(stage / FUSED, current.device).network
        steps.retrain(network, step, stage, index)
        steps.note(step.row)
        start = replace(start, network=network)


def _folder(current: Session, trial: int) -> Path:
    return trial_folder(current, trial, current.recipe.trials)


def _stage(folder: Path, index: int) -> Path:
    """Of step `index`, counted from 1."""
    return folder / f"step-{index}"


def _plan(current: Session, options: FuseAndRetrain, ranked: bool) -> Result:
    with temporary_folder(current.group) as folder:
        steps = FuseSteps(current, options, 0, folder)
        cost = _cost(options, steps)
        if options.layers == "auto" and ranked:
            return plan_result(current, steps.start.network, *steps.rank(steps.start.network, 1), cost)
        return plan_result(current, steps.start.network, *_chains(options, steps), cost)


def _chains(options: FuseAndRetrain, steps: FuseSteps) -> tuple[list[Fusible], dict[str, str]]:
    """What can be fused, without any moments; refuses what the recipe names and cannot be."""
    if options.layers == "auto":
        return steps.find(steps.start.network)
    return [one.fusible for one in steps.planned], {}


def _cost(options: FuseAndRetrain, steps: FuseSteps) -> list[str]:
    """What taking the moments costs that a run needs; of `layers: auto` for its first step."""
    if options.layers == "auto":
        fusibles, _ = steps.find(steps.start.network)
        return [steps.gather.plan([fusible.request for fusible in fusibles])] if fusibles else []
    groups = steps.passes()
    shared = [" and ".join(str(fusible.chain) for fusible in group) for group in groups if len(group) > 1]
    cost = steps.gather.cost([[fusible.request for fusible in group] for group in groups])
    return [
        f"moments of {counted(len(steps.planned), 'chain')}: {cost}" + "".join(f"; {names} in one" for names in shared)
    ]


def _run_trial(current: Session, options: FuseAndRetrain, trial: int) -> FusedTrial:
    """All steps of one trial; those that an interrupted run had finished are read back."""
    folder = _folder(current, trial)
    steps = FuseSteps(current, options, trial, folder / "moments")
    start = steps.start
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path)
    result = FusedTrial(steps.seed, start.network, before, folder / MODEL, start.path, steps.trained)
    for index in itertools.count(1):
        stage = _stage(folder, index)
        if not _fused(current, steps, start, folder, index):
            break
        if not (current.arguments.resume and steps.is_trained(stage / STEP, index)):
            step, network = read_step(stage / FUSED_STEP), load(stage / FUSED, current.device).network
            steps.train(network, step, stage, index)
            _keep_step(current, start, network, step, stage / MODEL, stage / STEP)
        result.steps.append(read_step(stage / STEP))
        steps.note(result.steps[-1].row)
        start = replace(start, network=load(stage / MODEL, current.device).network)
    if not result.steps:
        raise RecipeError("fuse: no chain was fused, since `until` is reached already or allows none; see --dry-run")
    keep(current, start.network, result.path, steps.seed, result.steps[-1].final, start)
    result.reloaded = current.reload_difference(start.network, result.path)
    result.after = current.figures(start.network, result.steps[-1].final, result.path)
    result.size = (steps.original, size(start.network, current.data.input_shape))
    result.ranking = Ranking(**json.loads((folder / RANKING).read_text()))
    return result


def _fused(current: Session, steps: FuseSteps, start: Start, folder: Path, index: int) -> bool:
    """Whether there is a chain to fuse in step `index`; if so its network is kept, before any training."""
    stage = _stage(folder, index)
    if current.arguments.resume and (stage / FUSED_STEP).exists():
        return True
    candidate, ranking = steps.next(start.network, index)
    if index == 1 and current.group.is_main:
        write_json(folder / RANKING, asdict(ranking))
    if candidate is None:
        return False
    network, step = steps.fuse(start.network, candidate)
    _keep_step(current, start, network, step, stage / FUSED, stage / FUSED_STEP)
    return True


def _keep_step(current: Session, start: Start, network: fx.GraphModule, step: Step, model: Path, record: Path) -> None:
    """Writes the network, then the record: only with that is this part of the step done."""
    keep(current, network, model, step.seed, step.final, start)
    if current.group.is_main:
        write_json(record, step.plain())
    current.group.barrier()
