"""`compresskit train`: a new network from the recipe's model and data."""

from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, session, with_folder
from compresskit.commands.trials import train_trials
from compresskit.training.loop import check


def run(arguments: Arguments, progress: Progress) -> Result:
    """Trains `trials` networks from random weights; writes model.pt, best.pt and metrics.csv for each."""
    with session("train", arguments, ("model", "data", "train"), progress) as current:
        options = current.recipe.section("train")
        start = current.fresh(0)
        if arguments.dry_run:
            return plan_training(current, start.network, options)
        check(current.data, options, current.device, current.group)
        return train_trials(with_folder(current), options, current.fresh)
