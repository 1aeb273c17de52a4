"""`compresskit train`: a new network from the recipe's model and data."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import fx

from compresskit.commands.expand_settings import expandnet_start
from compresskit.commands.memorisation import check_memorisation, memorise
from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, Session, Start, session, with_folder
from compresskit.commands.trials import check_room, check_training, train_network, train_trials
from compresskit.options import narrowed
from compresskit.recipes.schema import FreshTraining
from compresskit.training.loop import History
from compresskit.training.options import Training


def run(arguments: Arguments, progress: Progress) -> Result:
    """Trains `trials` networks from random weights; writes model.pt, best.pt and metrics.csv for each."""
    with session("train", arguments, ("model", "data", "train"), progress) as current:
        options: FreshTraining = current.recipe.section("train")
        training = narrowed(Training, options)
        start = partial(expandnet_start, current) if options.init == "expandnet" else current.fresh
        first = start(0)
        check_memorisation(current, options.memorisation)
        if arguments.dry_run:
            return plan_training(current, first.network, training)
        check_training(current, first.network, training)
        current = with_folder(current)
        assert current.folder is not None
        if options.memorisation is not None and current.group.is_main:
            check_room(current, [first.network], current.folder.path, 1 + len(options.memorisation.label_noise))
        result = train_trials(current, training, start)
        if options.memorisation is not None:
            # Of these runs only the errors are asked for, so the many gradients of gradient_confusion are left out
            train = partial(_train, start=start, options=replace(training, gradient_confusion=None))
            result.tables.append(memorise(current, options.memorisation, {current.recipe.name: train}))
        return result


def _train(
    current: Session, folder: Path, trial: int, label: str, start: Callable[[int], Start], options: Training
) -> tuple[fx.GraphModule, History]:
    network = start(trial).network
    return network, train_network(current, network, options, current.recipe.seed + trial, folder, label)
