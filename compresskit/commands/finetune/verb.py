"""`compresskit finetune`: trains a checkpoint further."""

from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, session, with_folder
from compresskit.commands.trials import check_training, train_trials


def run(arguments: Arguments, progress: Progress) -> Result:
    """Trains the checkpoint, or that of each trial of a run folder, as the recipe's `finetune` section says."""
    with session("finetune", arguments, ("data", "finetune"), progress, from_checkpoint=True) as current:
        options = current.recipe.section("finetune")
        start = current.parent(0)
        if arguments.dry_run:
            return plan_training(current, start.network, options, start.network)
        check_training(current, start.network, options, start.network)
        return train_trials(with_folder(current), options, current.parent)
