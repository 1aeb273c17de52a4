"""`compresskit finetune`: trains a checkpoint further."""

from compresskit.commands.jobs.job import beside, placement, with_failures, worked
from compresskit.commands.plan import plan_training
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, folder_named, run_path, session, with_folder
from compresskit.commands.trials import check_room, check_training, train_trials, trial_jobs


def run(arguments: Arguments, progress: Progress) -> Result:
    """Trains the checkpoint, or that of each trial of a run folder, as the recipe's `finetune` section says."""
    with session("finetune", arguments, ("data", "finetune"), progress, from_checkpoint=True) as current:
        options = current.recipe.section("finetune")
        jobs = trial_jobs(folder_named(current), options, current.parent)
        if arguments.task:
            return worked(current, jobs)
        start = current.parent(0)
        if arguments.dry_run:
            result = plan_training(current, start.network, options, start.network)
            result.notes += placement(current, jobs)
            return result
        check_training(current, start.network, options, start.network)
        if current.group.is_main:
            check_room(current, [start.network], run_path(current), epochs=options.kept_epochs)
        current = beside(with_folder(current), jobs)
        return with_failures(current, train_trials(current, options, current.parent))
