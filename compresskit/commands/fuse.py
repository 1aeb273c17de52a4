"""`compresskit fuse`: fuses the layers that the recipe names, or chooses them, and retrains if asked."""

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from compresskit.commands.fuse_report import FusedTrial, fuse_result, plan_result, read_step
from compresskit.commands.fuse_steps import FuseSteps
from compresskit.commands.result import Result
from compresskit.commands.session import MODEL, Arguments, Progress, Session, session, trial_folder, with_folder
from compresskit.commands.trials import keep
from compresskit.errors import RecipeError
from compresskit.passes.fuse import rehearse
from compresskit.passes.fuse_auto import size
from compresskit.recipes.schema import FuseAndRetrain
from compresskit.storage.atomic import atomic_write
from compresskit.storage.checkpoint import load

STEP = "step.json"


def run(arguments: Arguments, progress: Progress) -> Result:
    """Fuses one chain after another, each with its moments, its error on held-out images and its retraining."""
    with session("fuse", arguments, ("data", "fuse"), progress, from_checkpoint=True) as current:
        options: FuseAndRetrain = current.recipe.section("fuse")
        network = current.parent(0).network
        planned = []
        if options.layers != "auto":
            planned = rehearse(network, current.data.input_shape, options)
        elif options.until is None and not arguments.dry_run:
            raise RecipeError("fuse.until: `layers: auto` needs to know when to stop; --dry-run shows the candidates")
        if arguments.dry_run and planned:
            return plan_result(current, network, planned, {})
        if arguments.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                return plan_result(current, network, *FuseSteps(current, options, 0, Path(folder)).rank(network))
        current = with_folder(current)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        return fuse_result(current, options, trials)


def _run_trial(current: Session, options: FuseAndRetrain, trial: int) -> FusedTrial:
    """All steps of one trial; those that an interrupted run had finished are read back."""
    folder = trial_folder(current, trial, current.recipe.trials)
    steps = FuseSteps(current, options, trial, folder / "moments")
    start = steps.start
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path)
    result = FusedTrial(steps.seed, start.network, before, folder / MODEL)
    for index in itertools.count(1):
        stage = folder / f"step-{index}"
        if current.arguments.resume and (stage / STEP).exists():
            result.steps.append(read_step(stage / STEP))
            start = replace(start, network=load(stage / MODEL, current.device).network)
            continue
        candidate = steps.next(start.network, index)
        if candidate is None:
            break
        network, step = steps.take(start.network, candidate, stage)
        start = replace(start, network=network)
        keep(current, network, stage / MODEL, steps.seed, step.final, start)
        if current.group.is_main:  # last: only now is the step done
            with atomic_write(stage / STEP) as temporary:
                temporary.write_text(json.dumps(step.plain(), indent=2))
        result.steps.append(step)
    if not result.steps:
        raise RecipeError("fuse: no chain was fused, since `until` is reached already or allows none; see --dry-run")
    keep(current, start.network, result.path, steps.seed, result.steps[-1].final, start)
    result.reloaded = current.reload_difference(start.network, result.path)
    result.after = current.figures(start.network, result.steps[-1].final, result.path)
    result.size = (steps.original, size(start.network, current.data.input_shape))
    result.ranked, result.skipped = steps.first_ranking
    return result
