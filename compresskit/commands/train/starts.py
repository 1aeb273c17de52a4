"""What `train` trains: a new network as the recipe draws it, or one that was trained dense and then masked."""

import copy
from dataclasses import replace

from compresskit.commands.expand.settings import expandnet_start
from compresskit.commands.session import Session, trial_folder
from compresskit.commands.train.initial import InitialStart, initial_start, masked_later, prepared
from compresskit.commands.train.section import FreshTraining
from compresskit.commands.trials import check_training, train_network
from compresskit.errors import RecipeError
from compresskit.options import narrowed
from compresskit.training.options import Training

DENSE = "dense"  # folder of the training before masks


def checked_start(current: Session) -> InitialStart:
    """Where the first trial starts, when all has been looked at that can be refused."""
    options: FreshTraining = current.recipe.section("train")
    start = start_of(current, 0)
    check_training(current, start.network, narrowed(Training, options))
    if masked_later(options):
        if options.memorisation is not None:
            raise RecipeError("train.memorisation: of a net that is masked after training; leave one of them out")
        later = _prepared(current, replace(start, network=copy.deepcopy(start.network)), 0)
        check_training(current, later.network, narrowed(Training, options))
        start = replace(start, nearest=later.nearest)
    return start


def start_of(current: Session, trial: int) -> InitialStart:
    """Before any training."""
    options: FreshTraining = current.recipe.section("train")
    if options.init == "expandnet":
        start = InitialStart(expandnet_start(current, trial).network)
        return start if masked_later(options) else _prepared(current, start, trial)
    return initial_start(current.recipe, current.data, current.device, trial)


def trained_start(current: Session, trial: int) -> InitialStart:
    """What a trial trains. Masks that come after training are put on here, when the dense network is trained."""
    options: FreshTraining = current.recipe.section("train")
    start, seed = start_of(current, trial), current.recipe.seed + trial
    if not masked_later(options):
        return start
    folder = trial_folder(current, trial, current.recipe.trials) / DENSE
    training = narrowed(Training, options)
    train_network(current, start.network, training, seed, folder, f"dense, seed {seed}", start.masks)
    return _prepared(current, start, trial)


def _prepared(current: Session, start: InitialStart, trial: int) -> InitialStart:
    return prepared(start, current.recipe.section("train"), current.data, current.recipe.seed + trial)
