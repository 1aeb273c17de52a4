"""`compresskit train`: a new network from the recipe's model and data."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import fx

from compresskit.commands.memorisation import check_memorisation, memorise
from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, Session, session, with_folder
from compresskit.commands.train.compare import Cell, add_comparison, add_plan, cells
from compresskit.commands.train.initial import InitialStart, masked_later
from compresskit.commands.train.report import add_drawn
from compresskit.commands.train.section import FreshTraining
from compresskit.commands.train.starts import checked_start, start_of, trained_start
from compresskit.commands.trials import check_room, train_network, train_trials
from compresskit.options import narrowed
from compresskit.training.loop import History
from compresskit.training.options import Training


def run(arguments: Arguments, progress: Progress) -> Result:
    """Trains `trials` networks from random weights; writes model.pt, best.pt and metrics.csv for each."""
    with session("train", arguments, ("model", "data", "train"), progress) as current:
        options: FreshTraining = current.recipe.section("train")
        others = cells(current)
        first = checked_start(current)
        starts = [_checked(cell) for cell in others]
        check_memorisation(current, options.memorisation)
        if arguments.dry_run:
            result = plan_training(current, first.network, narrowed(Training, options))
            add_drawn(result, first)
            add_plan(result, others, starts)
            return result
        current = with_folder(current)
        assert current.folder is not None
        if current.group.is_main:
            noisy = 0 if options.memorisation is None else len(options.memorisation.label_noise)
            networks = [start.network for start in (first, *starts)]
            dense = any(masked_later(cell.session.recipe.section("train")) for cell in others) or masked_later(options)
            check_room(current, networks, current.folder.path, 1 + noisy + dense)
        result = _trained(current)
        add_drawn(result, first)
        if options.memorisation is not None:
            result.tables.append(memorise(current, options.memorisation, {current.recipe.name: _noisy}))
        if others:
            add_comparison(current, result, others, _trained)
        return result


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
