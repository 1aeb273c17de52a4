"""`compresskit train`: a new network from the recipe's model and data."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import fx

from compresskit.commands.jobs.job import Job, beside, placement, with_failures, worked
from compresskit.commands.memorisation import check_memorisation, memorisation_jobs, memorise
from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import (
    Arguments,
    Progress,
    Session,
    Start,
    folder_named,
    run_path,
    session,
    with_folder,
)
from compresskit.commands.train.compare import Cell, add_comparison, add_plan, cells, in_cell
from compresskit.commands.train.initial import InitialStart, masked_later
from compresskit.commands.train.report import add_drawn
from compresskit.commands.train.section import FreshTraining
from compresskit.commands.train.starts import checked_start, start_of, trained_start
from compresskit.commands.trials import check_room, train_network, train_trials, trial_jobs
from compresskit.graph.counting import count
from compresskit.options import narrowed
from compresskit.training.loop import History
from compresskit.training.options import Training


def run(arguments: Arguments, progress: Progress) -> Result:
    """Trains `trials` networks from random weights; writes model.pt, best.pt and metrics.csv for each."""
    with session("train", arguments, ("model", "data", "train"), progress) as current:
        options: FreshTraining = current.recipe.section("train")
        others = cells(current)
        if arguments.task:
            return worked(current, _jobs(folder_named(current), others))
        first = checked_start(current)
        starts = [_checked(cell) for cell in others]
        check_memorisation(current, options.memorisation)
        jobs = _jobs(folder_named(current), others, [_macs(current, start) for start in (first, *starts)])
        if arguments.dry_run:
            result = plan_training(current, first.network, narrowed(Training, options))
            result.notes += placement(current, jobs)
            add_drawn(result, first)
            add_plan(result, others, starts)
            return result
        current = with_folder(current)
        assert current.folder is not None
        if current.group.is_main:
            noisy = 0 if options.memorisation is None else len(options.memorisation.label_noise)
            networks = [start.network for start in (first, *starts)]
            dense = any(masked_later(cell.session.recipe.section("train")) for cell in others) or masked_later(options)
            check_room(current, networks, current.folder.path, 1 + noisy + dense, options.kept_epochs)
        current = beside(current, jobs)
        result = _own(current, others)
        add_drawn(result, first)
        if options.memorisation is not None:
            result.tables.append(memorise(current, options.memorisation, {current.recipe.name: _noisy}))
        if others:
            add_comparison(current, result, others, _trained)
        return with_failures(current, result)


def _jobs(current: Session, others: Sequence[Cell], macs: Sequence[float] = ()) -> list[Job]:
    """All trainings. macs: of the run's own network and of each cell's; none where costs do not count."""
    own, *beside_it = macs or [0.0] * (1 + len(others))
    options: FreshTraining = current.recipe.section("train")
    jobs = _trainings(current, own)
    if options.memorisation is not None:
        nets, cost = {current.recipe.name: _noisy}, own * options.epochs
        jobs += memorisation_jobs(current, options.memorisation, nets, cost)
    for cell, each in zip(others, beside_it, strict=True):
        if not cell.own:
            jobs += _trainings(in_cell(current, cell), each)
    return jobs


def _trainings(current: Session, macs: float) -> list[Job]:
    options: FreshTraining = current.recipe.section("train")
    cost = macs * options.epochs * (2 if masked_later(options) else 1)
    return trial_jobs(current, narrowed(Training, options), partial(trained_start, current), cost)


def _macs(current: Session, start: Start) -> float:
    return count(start.network, current.data.input_shape).macs


def _own(current: Session, others: Sequence[Cell]) -> Result:
    """The recipe's own network; where it fails, and others are compared, the report has no figures of it."""
    try:
        return _trained(current)
    except Exception as error:
        if not others or error not in current.failed.values():
            raise
        return Result("train", current.recipe.name, run_path(current))


def _checked(cell: Cell) -> InitialStart:
    with cell.named():
        return checked_start(cell.session)


def _trained(current: Session) -> Result:
    training = narrowed(Training, current.recipe.section("train"))
    return train_trials(current, training, partial(trained_start, current))


def _noisy(current: Session, folder: Path, trial: int, label: str) -> tuple[fx.GraphModule, History]:
    """Of these runs only the errors are asked for, so the many gradients of gradient_confusion are left out."""
    start, seed = start_of(current, trial), current.recipe.seed + trial
    options = replace(narrowed(Training, current.recipe.section("train")), gradient_confusion=None)
    return start.network, train_network(current, start.network, options, seed, folder, label, start.masks)
