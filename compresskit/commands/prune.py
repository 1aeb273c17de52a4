"""`compresskit prune`: takes channels out, or masks weights or kernels, and retrains, in one step or in several."""

from dataclasses import replace
from pathlib import Path

from compresskit.commands.parents import MODEL, check_unmasked
from compresskit.commands.prune_channels import prune_channels, pruner
from compresskit.commands.prune_report import plan_result, prune_result
from compresskit.commands.prune_stages import PRUNED, STEP, PrunedTrial, PruneStep
from compresskit.commands.prune_weights import masker, prune_weights
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, Session, Start, session, trial_folder, with_folder
from compresskit.commands.trials import check_room, check_training, keep, train_network
from compresskit.passes.mask import Masker
from compresskit.passes.prune import Pruner
from compresskit.recipes.schema import MaskAndRetrain, PruneAndRetrain
from compresskit.storage.checkpoint import load


def run(arguments: Arguments, progress: Progress) -> Result:
    """Prunes a trained net; writes pruned.pt, as it was before retraining, and model.pt."""
    with session("prune", arguments, ("data", "prune"), progress, from_checkpoint=True) as current:
        options: PruneAndRetrain | MaskAndRetrain = current.recipe.section("prune")
        start = current.parent(0)
        plan = _planned(current, options, start, current.recipe.seed)
        if options.retrain is not None:
            check_training(current, start.network, options.retrain)
        if arguments.dry_run:
            return plan_result(current, options, plan)
        current = with_folder(current)
        assert current.folder is not None
        if current.group.is_main:
            check_room(current, [start.network], current.folder.path, options.steps)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        return prune_result(current, options, trials)


def _planned(current: Session, options: PruneAndRetrain | MaskAndRetrain, start: Start, seed: int) -> Pruner | Masker:
    """All that can be refused before any work."""
    if isinstance(options, MaskAndRetrain):
        return masker(current, options, start, seed)
    if start.checkpoint is not None and start.path is not None:
        check_unmasked(start.checkpoint, start.path, "pruning channels")
    return pruner(current, options, start.network)


def _run_trial(current: Session, options: PruneAndRetrain | MaskAndRetrain, trial: int) -> PrunedTrial:
    folder, start = trial_folder(current, trial, current.recipe.trials), current.parent(trial)
    seed = current.recipe.seed + trial
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path, start.masks)
    plan, steps, retrained = _planned(current, options, start, seed), [], []
    for number in range(1, options.steps + 1):
        limit = plan.now * (plan.asked / plan.now) ** (number / options.steps)
        own = folder / f"step-{number}" if options.steps > 1 else folder
        start, step = _step(current, _at(options, limit, plan.whole), start, own, seed)
        steps.append(step)
        if options.retrain is not None:
            label = f"retrain seed {seed}" + (f", step {number} of {options.steps}" if options.steps > 1 else "")
            train_network(current, start.network, options.retrain, seed, own / "retrain", label, start.masks)
            retrained.append(current.evaluate(start.network))
    path = folder / MODEL
    metrics = retrained[-1] if retrained else steps[-1].repaired
    keep(current, start.network, path, seed, metrics, start)
    after = current.figures(start.network, metrics, path, start.masks)
    reloaded = current.reload_difference(start.network, path)
    return PrunedTrial(seed, path, before, after, reloaded, steps, retrained)


def _at(options: PruneAndRetrain | MaskAndRetrain, limit: float, whole: float) -> PruneAndRetrain | MaskAndRetrain:
    """The same with another limit for what is left of `whole`."""
    if isinstance(options, MaskAndRetrain):
        return replace(options, target=options.target.at(limit, whole))
    return replace(options, target=options.target.at(limit))


def _step(
    current: Session, options: PruneAndRetrain | MaskAndRetrain, start: Start, folder: Path, seed: int
) -> tuple[Start, PruneStep]:
    """Where the next step starts, and what this one did; read back where an interrupted run had finished it."""
    if not (current.arguments.resume and (folder / STEP).exists()):
        if isinstance(options, MaskAndRetrain):
            step = prune_weights(current, options, start, folder, seed)
        else:
            step = prune_channels(current, options, start, folder, seed)
        step.write(current, folder)
    pruned = load(folder / PRUNED, current.device)
    return replace(start, network=pruned.network, masks=pruned.masks), PruneStep.read(folder)
