"""`compresskit reconstruct`: thins the inputs of layers, refits and cuts them, and retrains if asked."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.moments import gatherer
from compresskit.commands.parents import MODEL
from compresskit.commands.reconstruct.compare import SPARSE_ROWS, Comparison, Point, combinations, rivals_at
from compresskit.commands.reconstruct.judge import judge_by
from compresskit.commands.reconstruct.report import Outcome, ReconstructedTrial, plan_result, reconstruct_result
from compresskit.commands.reconstruct.section import ReconstructAndRetrain
from compresskit.commands.reconstruct.sizes import sizes
from compresskit.commands.reconstruct.sparse_rows import check_sparse_rows, sparse_rows
from compresskit.commands.repair.fitting import check_fits, copies
from compresskit.commands.repair.judging import judging_split
from compresskit.commands.repair.ladder import Ladder, Rung
from compresskit.commands.result import Result
from compresskit.commands.session import (
    Arguments,
    Progress,
    Session,
    Start,
    run_path,
    session,
    trial_folder,
    with_folder,
)
from compresskit.commands.trials import check_room, check_training, keep, plain_parent, train_network
from compresskit.errors import RecipeError
from compresskit.graph.shapes import evaluating
from compresskit.numerics.outputs import largest_difference
from compresskit.passes.reconstruct.budget import SizeModel, check_target
from compresskit.passes.reconstruct.network import Reconstruction, reconstruct
from compresskit.passes.reconstruct.readers import Plan, plan
from compresskit.passes.reconstruct.targets import Judge, rules_of
from compresskit.passes.shares import share
from compresskit.storage.atomic import write_json
from compresskit.storage.checkpoint import load

RECONSTRUCTED, OUTCOME = "reconstructed.pt", "reconstructed.json"  # before retraining
COMPARISON = "comparison.json"


def run(arguments: Arguments, progress: Progress) -> Result:
    """Takes moments, chooses what each layer reads, cuts the rest; then retrains, and compares, if asked."""
    with session("reconstruct", arguments, ("data", "reconstruct"), progress, from_checkpoint=True) as current:
        options: ReconstructAndRetrain = current.recipe.section("reconstruct")
        network = plain_parent(current, 0).network
        if options.retrain is not None:
            check_training(current, network, options.retrain, network)
        made = _checked_plan(current, network, options)
        check_fits(current, options)
        if current.group.is_main:
            check_room(current, [network], run_path(current), passing=copies(options))
        if arguments.dry_run:
            return plan_result(current, network, options, made)
        current = with_folder(current)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        return reconstruct_result(current, options, made, trials)


def _checked_plan(current: Session, network: fx.GraphModule, options: ReconstructAndRetrain) -> Plan:
    """What will be thinned; refuses, before any work, what cannot be, and a target that cannot be met."""
    shape = current.data.input_shape
    made = plan(network, shape, options)
    if options.target is None:
        for setting in (options, *combinations(options)[0]):
            rules_of(network, made, setting)
        return made
    if options.target.accuracy_drop is not None and current.data.task != "classification":
        raise RecipeError("reconstruct.target.accuracy_drop: the recipe's data are numbers, no classes; give a size")
    model, settings = SizeModel(network, made, shape, centred=options.centred), combinations(options)[0]
    for at in rivals_at(settings):
        check_sparse_rows(network, shape, at)
    for setting in (options, *settings):
        if setting.target is not None:
            check_target(model, setting.target, options.min_channels)
    return made


def _run_trial(current: Session, options: ReconstructAndRetrain, trial: int) -> ReconstructedTrial:
    """One trial; what an interrupted run had finished is read back."""
    folder = trial_folder(current, trial, current.recipe.trials)
    start, seed = plain_parent(current, trial), current.recipe.seed + trial
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path)
    work = _Work(current, options, start, folder)
    done = folder / OUTCOME
    if not (current.arguments.resume and done.exists()):
        found = work.reconstruct(options)
        if not any(row.kept < row.inputs or row.low_rank for row in found.rows):
            raise RecipeError("reconstruct: every layer keeps all of its inputs; ask for less, or lower min_channels")
        ladder = Ladder(current, start.network, work.judge.loss, f"seed {seed}")
        ladder.climb(f"reconstructed, {options.chaining}", lambda: found.network)
        ladder.fit(options, folder, seed, found.places)
        outcome = _outcome(current, found, ladder.rungs, work.held_out_drop(ladder.network))
        keep(current, ladder.network, folder / RECONSTRUCTED, seed, outcome.final, start)
        if current.group.is_main:
            write_json(done, outcome.plain)
        current.group.barrier()
    outcome = Outcome.read(done)
    network = load(folder / RECONSTRUCTED, current.device).network
    retrained = None
    if options.retrain is not None:
        label, original = f"retrain seed {seed}", start.network
        train_network(current, network, options.retrain, seed, folder / "retrain", label, original=original)
        retrained = current.evaluate(network)
    path = folder / MODEL
    keep(current, network, path, seed, retrained or outcome.final, start)
    result = ReconstructedTrial(seed, path, before, outcome, retrained)
    result.after = current.figures(network, retrained or outcome.final, path)
    result.sizes = (sizes(start.network, current.data.input_shape), sizes(network, current.data.input_shape))
    result.reloaded = current.reload_difference(network, path)
    result.monitored = current.evaluate(network, current.data.validation) if current.data.validation else None
    if options.compare is not None:
        result.compared = work.compare(folder / COMPARISON)
    return result


class _Work:
    """Reconstructions of one network; moments, trade-offs and the judge's losses serve all of them."""

    def __init__(self, current: Session, options: ReconstructAndRetrain, start: Start, folder: Path) -> None:
        self._current, self._options, self._start = current, options, start
        self._gather = gatherer(current, folder / "moments", options.samples)
        self._memory: dict[tuple[object, ...], list[object]] = {}

    @cached_property
    def judge(self) -> Judge:
        """Made when it is asked for: a run that only retrains has no use for it."""
        current, options = self._current, self._options
        return judge_by(current, self._start.network, judging_split(current, options.held_out), options.alone)

    def reconstruct(self, options: ReconstructAndRetrain) -> Reconstruction:
        current = self._current
        current.progress.log(f"reconstruct: {options.chaining}, {options.chosen_selection.kind}")
        shape = current.data.input_shape
        network = self._start.network
        return reconstruct(network, self._gather, options, shape, self.judge, self._memory, self._told)

    def _told(self, label: str, work: Sequence[float]) -> Callable[[], None]:
        """Percents of the work that is done, for one layer may take longer than all others."""
        progress, total = self._current.progress, sum(work)
        progress.start(f"{label}, percent", 100)
        done = accumulate(work)
        return lambda: progress.update(int(100 * next(done) / total))

    def held_out_drop(self, network: fx.GraphModule) -> float | None:
        """Points of accuracy lost on held-out images, where the target is one of these."""
        target, accuracy = self._options.target, self.judge.accuracy
        if target is None or target.accuracy_drop is None or accuracy is None:
            return None
        return 100 * (accuracy(self._start.network) - accuracy(network))

    def compare(self, path: Path) -> Comparison:
        """Every combination that `compare` names; those that an interrupted run had finished are read back."""
        settings, impossible = combinations(self._options)
        comparison = Comparison.read(path) if self._current.arguments.resume else Comparison()
        comparison.impossible = impossible
        shape = self._current.data.input_shape
        whole = sizes(self._start.network, shape)
        for setting in settings[len(comparison.points) :]:
            found = self.reconstruct(setting)
            metrics, training = self._measured(found.network)
            comparison.add(setting, metrics, training, found, sizes(found.network, shape).raw / whole.raw)
            self._keep(comparison, path)
        for at in rivals_at(settings)[max(0, len(comparison.points) - len(settings)) :]:
            sparse = sparse_rows(self._start.network, shape, share(at))
            metrics, training = self._measured(sparse)
            size = sizes(sparse, shape).csr / whole.raw
            comparison.points.append(Point(SPARSE_ROWS, "", True, f"size {at}", size, metrics, training, {}, {}))
            self._keep(comparison, path)
        return comparison

    def _measured(self, network: fx.GraphModule) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics on the test images, and on as many training images."""
        data = self._current.data
        return self._current.evaluate(network), self._current.evaluate(network, data.train.sample(len(data.test)))

    def _keep(self, comparison: Comparison, path: Path) -> None:
        if self._current.group.is_main:
            write_json(path, asdict(comparison))


def _outcome(current: Session, found: Reconstruction, rungs: list[Rung], drop: float | None) -> Outcome:
    inputs, _ = next(current.data.test.batches(64, current.device))
    with torch.inference_mode(), evaluating(found.masked), evaluating(found.cut):
        difference = largest_difference(found.masked(inputs), found.cut(inputs))
    curves = {name: (list(curve.kept), list(curve.errors)) for name, curve in found.curves.items()}
    return Outcome(rungs, found.rows, curves, found.notes, found.seconds, difference, drop)
