"""`compresskit reconstruct`: thins the inputs of layers, refits and cuts them, and retrains if asked."""

import time
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.jobs.job import Job, attempt, beside, placement, with_failures, worked
from compresskit.commands.moments import gatherer
from compresskit.commands.parents import MODEL
from compresskit.commands.reconstruct.compare import (
    SPARSE_ROWS,
    Comparison,
    Part,
    Point,
    combinations,
    parts,
    rivals_at,
)
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
    folder_named,
    run_path,
    session,
    trial_folder,
    with_folder,
)
from compresskit.commands.trials import check_room, check_training, keep, plain_parent, train_network
from compresskit.errors import RecipeError
from compresskit.graph.shapes import evaluating
from compresskit.jobs.lanes import percents
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
        jobs = _jobs(folder_named(current), options)
        if arguments.task:
            return worked(current, jobs)
        network = plain_parent(current, 0).network
        if options.retrain is not None:
            check_training(current, network, options.retrain, network)
        made = _checked_plan(current, network, options)
        check_fits(current, options)
        if current.group.is_main:
            check_room(current, [network], run_path(current), passing=copies(options))
        if arguments.dry_run:
            result = plan_result(current, network, options, made)
            result.notes += placement(current, jobs)
            return result
        current = beside(with_folder(current), jobs)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        own, compared = [one for one, _ in trials if one is not None], [comparison for _, comparison in trials]
        return with_failures(current, reconstruct_result(current, options, made, own, compared))


def _jobs(current: Session, options: ReconstructAndRetrain) -> list[Job]:
    """The reconstruction that is kept, and the parts of the comparison, of each trial. The former is retrained, and so
    takes longest."""

    def work(trial: int) -> "_Work":
        return _Work(current, options, plain_parent(current, trial), trial)

    jobs = list[Job]()
    for trial in range(current.recipe.trials):
        folder = trial_folder(current, trial, current.recipe.trials)
        jobs.append(Job(folder, partial(lambda trial: work(trial).make(), trial), cost=1.0))
        jobs += [
            Job(_folder_of(part, folder), partial(lambda trial, part: work(trial).compare(part), trial, part))
            for part in parts(options)
        ]
    return jobs


def _folder_of(part: Part, folder: Path) -> Path:
    """Of a part of the comparison, in that of its trial."""
    return folder / "compare" / part.name


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


def _run_trial(
    current: Session, options: ReconstructAndRetrain, trial: int
) -> tuple[ReconstructedTrial | None, Comparison]:
    """The reconstruction that is kept, and the comparison; what failed is left out."""
    start = plain_parent(current, trial)
    work = _Work(current, options, start, trial)
    own = attempt(current, work.folder, partial(_run_own, current, work, start))
    compared = Comparison(impossible=combinations(options)[1])
    for part in parts(options):
        found = attempt(current, _folder_of(part, work.folder), partial(work.compare, part))
        compared.points += found.points if found is not None else []
    if own is not None:
        own.compared = compared
    return own, compared


def _run_own(current: Session, work: "_Work", start: Start) -> ReconstructedTrial:
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path)
    outcome, network, retrained = work.make()
    path = work.folder / MODEL
    keep(current, network, path, work.seed, retrained or outcome.final, start)
    result = ReconstructedTrial(work.seed, path, before, outcome, retrained)
    result.after = current.figures(network, retrained or outcome.final, path)
    result.sizes = (sizes(start.network, current.data.input_shape), sizes(network, current.data.input_shape))
    result.reloaded = current.reload_difference(network, path)
    result.monitored = current.evaluate(network, current.data.validation) if current.data.validation else None
    return result


class _Work:
    """Reconstructions of one network; moments, trade-offs and the judge's losses serve all of them."""

    def __init__(self, current: Session, options: ReconstructAndRetrain, start: Start, trial: int) -> None:
        self.folder, self.seed = trial_folder(current, trial, current.recipe.trials), current.recipe.seed + trial
        self._current, self._options, self._start = current, options, start
        self._gather = gatherer(current, self.folder / "moments", options.samples)
        self._memory: dict[tuple[object, ...], list[object]] = {}

    @cached_property
    def judge(self) -> Judge:
        """Made when it is asked for: a run that only retrains has no use for it."""
        current, options = self._current, self._options
        return judge_by(current, self._start.network, judging_split(current, options.held_out), options.alone)

    def make(self) -> tuple[Outcome, fx.GraphModule, dict[str, float] | None]:
        """The network that is kept, retrained if asked, with its test metrics; what an interrupted run had finished is
        read back."""
        current, options, done = self._current, self._options, self.folder / OUTCOME
        if not (current.arguments.resume and done.exists()):
            self._make_anew(done)
        outcome = Outcome.read(done)
        network = load(self.folder / RECONSTRUCTED, current.device).network
        if options.retrain is None:
            return outcome, network, None
        label, original = f"retrain seed {self.seed}", self._start.network
        train_network(current, network, options.retrain, self.seed, self.folder / "retrain", label, original=original)
        return outcome, network, current.evaluate(network)

    def _make_anew(self, done: Path) -> None:
        current, options, start = self._current, self._options, self._start
        began = time.perf_counter()
        found = self.reconstruct(options)
        if not any(row.kept < row.inputs or row.low_rank for row in found.rows):
            raise RecipeError("reconstruct: every layer keeps all of its inputs; ask for less, or lower min_channels")
        ladder = Ladder(current, start.network, self.judge.loss, f"seed {self.seed}")
        ladder.climb(f"reconstructed, {options.chaining}", lambda: found.network, since=began)
        ladder.fit(options, self.folder, self.seed, found.places)
        outcome = _outcome(current, found, ladder.rungs, self.held_out_drop(ladder.network))
        keep(current, ladder.network, self.folder / RECONSTRUCTED, self.seed, outcome.final, start)
        if current.group.is_main:
            write_json(done, outcome.plain)
        current.group.barrier()

    def reconstruct(self, options: ReconstructAndRetrain) -> Reconstruction:
        current = self._current
        current.progress.log(f"reconstruct: {options.chaining}, {options.chosen_selection.kind}")
        shape = current.data.input_shape
        network = self._start.network
        start = partial(percents, current.progress)
        return reconstruct(network, self._gather, options, shape, self.judge, self._memory, start)

    def held_out_drop(self, network: fx.GraphModule) -> float | None:
        """Points of accuracy lost on held-out images, where the target is one of these."""
        target, accuracy = self._options.target, self.judge.accuracy
        if target is None or target.accuracy_drop is None or accuracy is None:
            return None
        return 100 * (accuracy(self._start.network) - accuracy(network))

    def compare(self, part: Part) -> Comparison:
        """Points of a part of the comparison; those that an interrupted run had finished are read back."""
        path = _folder_of(part, self.folder) / COMPARISON
        comparison = Comparison.read(path) if self._current.arguments.resume else Comparison()
        shape = self._current.data.input_shape
        whole = sizes(self._start.network, shape)
        for setting in part.settings[len(comparison.points) :]:
            found = self.reconstruct(setting)
            metrics, training = self._measured(found.network)
            comparison.add(setting, metrics, training, found, sizes(found.network, shape).raw / whole.raw)
            self._keep(comparison, path)
        for at in part.sparse_rows[len(comparison.points) :]:
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
