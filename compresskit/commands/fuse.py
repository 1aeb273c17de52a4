"""`compresskit fuse`: fuses the layers that the recipe names, or chooses them, and retrains if asked."""

import copy
import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.fuse_report import FusedTrial, Step, fuse_result, plan_result, read_step, widths
from compresskit.commands.moments import gatherer
from compresskit.commands.result import Result
from compresskit.commands.session import MODEL, Arguments, Progress, Session, Start, session, trial_folder, with_folder
from compresskit.commands.trials import keep, train_network
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.edit import reset_parameters
from compresskit.numerics.fusion import Fusion
from compresskit.passes.fuse import FusedLayer, describe, measure, rehearse, solve
from compresskit.passes.fuse_auto import Candidate, Size, choose, rank_candidates, size
from compresskit.passes.fusible import Fusible, apply, find
from compresskit.recipes.schema import FuseAndRetrain
from compresskit.storage.atomic import atomic_write
from compresskit.storage.checkpoint import load
from compresskit.training.options import Training

STEP = "step.json"


def run(arguments: Arguments, progress: Progress) -> Result:
    """Fuses one chain after another, each with its moments, its error on held-out images and its retraining."""
    with session("fuse", arguments, ("data", "fuse"), progress, from_checkpoint=True) as current:
        options: FuseAndRetrain = current.recipe.section("fuse")
        start = current.parent(0)
        if options.layers != "auto":
            planned = rehearse(start.network, current.data.input_shape, options)
        elif options.until is None and not arguments.dry_run:
            raise RecipeError("fuse.until: `layers: auto` needs to know when to stop; --dry-run shows the candidates")
        if arguments.dry_run:
            return _plan(current, options, start, [] if options.layers == "auto" else planned)
        current = with_folder(current)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        return fuse_result(current, options, trials)


def _plan(current: Session, options: FuseAndRetrain, start: Start, planned: list[Fusible]) -> Result:
    if options.layers != "auto":
        return plan_result(current, start.network, planned, {})
    with tempfile.TemporaryDirectory() as folder:
        ranked, skipped = _rank(current, options, start.network, Path(folder))
        return plan_result(current, start.network, ranked, skipped)


def _run_trial(current: Session, options: FuseAndRetrain, trial: int) -> FusedTrial:
    """All steps of one trial; those that an interrupted run had finished are read back."""
    start, folder = current.parent(trial), trial_folder(current, trial, current.recipe.trials)
    assert start.path is not None
    seed, original = current.recipe.seed + trial, size(start.network, current.data.input_shape)
    before = current.figures(start.network, current.evaluate(start.network), start.path)
    result = FusedTrial(seed, start.network, before, folder / MODEL)
    for index in itertools.count(1):
        stage = folder / f"step-{index}"
        if current.arguments.resume and (stage / STEP).exists():
            result.steps.append(read_step(stage / STEP))
            start = replace(start, network=load(stage / MODEL, current.device).network)
            continue
        candidate = _next(current, options, start.network, index, original, result, folder / "moments")
        if candidate is None:
            break
        start, step = _fuse_step(current, options, start, candidate, seed, stage)
        result.steps.append(step)
    if not result.steps:
        raise RecipeError("fuse: no chain was fused, since `until` is reached already or allows none; see --dry-run")
    keep(current, start.network, result.path, seed, result.steps[-1].final, start)
    result.reloaded = current.reload_difference(start.network, result.path)
    result.after = current.figures(start.network, result.steps[-1].final, result.path)
    result.size = (original, size(start.network, current.data.input_shape))
    return result


def _next(
    current: Session,
    options: FuseAndRetrain,
    network: fx.GraphModule,
    index: int,
    original: Size,
    trial: FusedTrial,
    cache: Path,
) -> Candidate | None:
    """The chain to fuse in step `index`, solved; None when all are done."""
    if options.layers == "auto":
        assert options.until is not None
        ranked, skipped = _rank(current, options, network, cache)
        if index == 1:
            trial.ranked, trial.skipped = ranked, skipped
        return choose(ranked, options.until, size(network, current.data.input_shape), original)
    if index > len(options.layers):
        return None
    fusible = find(network, options.layers[index - 1], current.data.input_shape, options.kernel)
    moments = gatherer(current, cache, options)(network, [fusible.request])
    return Candidate(fusible, solve(fusible, moments[fusible.request.name], options))


def _rank(
    current: Session, options: FuseAndRetrain, network: fx.GraphModule, cache: Path
) -> tuple[list[Candidate], dict[str, str]]:
    gather = gatherer(current, cache, options)
    return rank_candidates(network, current.data.input_shape, options, gather, gather.memory)


def _fuse_step(
    current: Session, options: FuseAndRetrain, start: Start, candidate: Candidate, seed: int, stage: Path
) -> tuple[Start, Step]:
    fusible, fusion = candidate.fusible, candidate.fusion
    row = _measured(current, options, start.network, fusible, fusion)
    fused = apply(start.network, fusible, fusion)
    metrics = current.evaluate(fused)
    current.progress.log(f"{row.name}: fused {' + '.join(row.layers)}, {_said(metrics)} before retraining")
    step = Step(row, widths(fused), metrics)
    label = f"seed {seed}, {step.widths}"
    if options.retrain is not None:
        history = train_network(current, fused, options.retrain, seed, stage / "retrain", f"retrain {label}")
        step.retrained = current.evaluate(fused)
        step.curve = [metrics[history.monitor.split("_", 1)[1]], *(r[history.monitor] for r in history.rows)]
    settings = _baseline(options)
    if settings is not None:
        random = reset_parameters(copy.deepcopy(fused), seed)
        history = train_network(current, random, settings, seed, stage / "random", f"random {label}")
        step.random = current.evaluate(random)
        step.random_curve = [r[history.monitor] for r in history.rows]
    keep(current, fused, stage / MODEL, seed, step.final, start)
    if current.group.is_main:
        with atomic_write(stage / STEP) as temporary:
            temporary.write_text(json.dumps(step.plain(), indent=2))
    return replace(start, network=fused), step


def _measured(
    current: Session, options: FuseAndRetrain, network: fx.GraphModule, fusible: Fusible, fusion: Fusion
) -> FusedLayer:
    """The row of a fused layer with its error on held-out images; refuses weights that are no use."""
    if not torch.isfinite(fusion.weight).all():
        raise ConvergenceError(f"{fusible.chain}: the activations are not finite; check the checkpoint and the data")
    if not fusion.converged:
        residual = max(solution.residual for solution in fusion.solutions)
        text = (
            f"{fusible.chain}: the solver stopped at a residual of {residual:.1e}; raise max_iter or ridge, or use eigh"
        )
        if options.on_no_convergence == "fail":
            raise ConvergenceError(text)
        current.progress.log(text)
    split = current.held_out.sample(options.held_out)
    batches = split.batches(current.recipe.moments.batch_size, current.device)
    error, share = measure(network, fusible, fusion, batches)
    return replace(describe(network, fusible, fusion), measured_error=error, measured_unexplained=share)


def _baseline(options: FuseAndRetrain) -> Training | None:
    if options.baseline == "random":
        return options.retrain
    return options.baseline if isinstance(options.baseline, Training) else None


def _said(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
