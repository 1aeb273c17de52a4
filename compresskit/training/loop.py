"""Training from the first epoch to the last, or from where an earlier run was stopped."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from compresskit.data.dataset import DataSet, Split
from compresskit.data.own.targets import OWN
from compresskit.distributed import Group
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.masks import Masks, apply_masks
from compresskit.training import state
from compresskit.training.checks import check_own, checked_steps
from compresskit.training.metrics_log import MetricsLog, summary_writer
from compresskit.training.options import Training
from compresskit.training.tasks.evaluation import METRICS, evaluate, tally_for, watched
from compresskit.training.tasks.losses import loss_for
from compresskit.training.tasks.own import MAPS, OwnLoss, OwnMetrics
from compresskit.training.trainer import Trainer

log = logging.getLogger("compresskit")

ON_TEST_SET = "best epoch chosen on the test set; set `data.validation` for an honest choice"


class Progress(Protocol):
    """Who wants to hear how far a run is; called in the main process alone."""

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """Step `step` of `steps` of epoch `epoch` is done, both counted from 1."""
        ...

    def on_epoch(self, row: Mapping[str, float]) -> None:
        """An epoch is done, evaluated and saved."""
        ...


@dataclass(frozen=True)
class History:
    """What training did. rows: those of metrics.csv. monitor: the column that picks the best epoch.

    best_epoch: counted from 1, the first of several equal ones. best_state: its state dict, on the CPU.
    seconds: of training and evaluation, summed over the runs that it took. cosines: of gradients of pairs of batches
    after the last epoch, if `gradient_confusion` was asked for.
    """

    rows: list[dict[str, float]]
    monitor: str
    best_epoch: int
    best_metric: float
    best_state: dict[str, Tensor]
    seconds: float
    cosines: list[float] = field(default_factory=list)


def fit(
    network: fx.GraphModule,
    data: DataSet,
    options: Training,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    resume: bool = False,
    group: Group = Group(),  # noqa: B008
    progress: Progress | None = None,
    teacher: fx.GraphModule | None = None,
    masks: Masks | None = None,
    metrics: OwnMetrics | None = None,
) -> History:
    """Trains `network` in place, on `device`; afterwards it holds the last weights, and History the best.

    The best epoch is that of the validation split, or of the test set where there is none. After each epoch the main
    process replaces in `folder` metrics.csv, state.pt and, if it was the best so far, best-weights.pt, each file whole.
    resume: goes on from state.pt, if there is one, and ends with the tensors of a run that was never stopped.
    teacher: of `options.distill`. masks: of parameters, whose zeros stay zero. metrics: of the user's, evaluated too.
    Equal arguments give equal tensors on the same machine, as far as torch's own operations do.

    Raises RecipeError if the options do not fit the data or the device, RunFolderError if state.pt was made for
    another run, ConvergenceError if a loss is not finite (state.pt is then that of the epoch before).
    """
    network.to(device)
    monitor = _Monitor(data, options, metrics or {})
    apply_masks(network, masks or {})
    made_for = state.fingerprint(network, data, options, seed, device, group.world, teacher, masks)
    stopped = state.load(folder, made_for) if resume else None
    if stopped is not None and len(stopped[0].rows) == options.epochs:
        network.load_state_dict(stopped[1]["network"])  # all that is asked for: an optimiser takes long to import
        return _history(folder, stopped[0], monitor)
    trainer = Trainer(network, data, options, seed, device, group, teacher, masks)
    record = _start(folder, stopped, trainer)
    first = len(record.rows)
    keeps_all = options.keep == "all" and group.is_main
    if keeps_all and first == 0:
        state.save_epoch(folder, network, 0)
    if first == 0 and data.validation is None and group.is_main:
        log.warning(ON_TEST_SET)
    with closing(MetricsLog(folder, tensorboard=options.tensorboard and group.is_main, first_epoch=first + 1)) as table:
        for epoch in range(first, options.epochs):
            row = _run_epoch(epoch, trainer, monitor, progress)
            if options.gradient_confusion is not None:
                record.cosines = trainer.gradient_cosines(epoch, options.gradient_confusion.pairs)
                row |= {"gradient_cosine_min": min(record.cosines), "gradient_cosine_mean": fmean(record.cosines)}
            is_best = record.add(row, monitor.column, higher_is_better=monitor.higher_is_better)
            if group.is_main:
                if is_best:
                    state.save_best(folder, network)
                if keeps_all:
                    state.save_epoch(folder, network, epoch + 1)
                table.write(record.rows)
                state.save(folder, made_for, record, trainer.state_dict())  # last: only now is the epoch done
                if progress is not None:
                    progress.on_epoch(row)
    group.barrier()  # the main process has written the best weights
    return _history(folder, record, monitor)


def check(
    network: fx.GraphModule,
    data: DataSet,
    options: Training,
    device: torch.device,
    group: Group = Group(),  # noqa: B008
    metrics: OwnMetrics | None = None,
) -> int:
    """Steps of an epoch, if `fit` will take these options. Raises RecipeError where it will not."""
    _Monitor(data, options, metrics or {})
    loss_for(data.task, options.loss)
    tally_for(data.task, data.anchors, device)
    if options.tensorboard:
        summary_writer()
    steps = checked_steps(network, data, options, device, group)
    if isinstance(options.loss, OwnLoss) or metrics:
        check_own(network, data, options.loss, metrics or {})
    return steps


class _Monitor:
    """The split that is evaluated after each epoch, and the column of its figures that picks the best."""

    def __init__(self, data: DataSet, options: Training, own: OwnMetrics) -> None:
        metrics = watched(data.task, data.outputs, own)
        twice = [name for name in own if name in METRICS[data.task]]
        if twice:
            raise RecipeError(f"report.metrics: {twice[0]} is a metric of the task already; rename yours")
        self._own = own
        name: str = options.monitor or next(iter(metrics))
        if name not in metrics:
            raise RecipeError(
                f"monitor: {name} was given, but the data set is for {data.task}; use {' or '.join(metrics)}"
            )
        self._prefix = "test" if data.validation is None else "val"
        self._split: Split = data.test if data.validation is None else data.validation
        self._task, self._anchors = data.task, data.anchors
        large = data.task in (*MAPS, OWN)  # outputs: evaluation has the memory that training has
        self._batch_size = options.batch_size if large else 1000
        self.column = f"{self._prefix}_{name}"
        self.higher_is_better = metrics[name].higher_is_better

    def figures(self, trainer: Trainer) -> dict[str, float]:
        """Raises ConvergenceError at one that is not finite: the last steps may have ruined the weights."""
        figures = evaluate(
            trainer.network,
            self._split,
            task=self._task,
            anchors=self._anchors,
            device=trainer.device,
            batch_size=self._batch_size,
            group=trainer.group,
            metrics=self._own,
        )
        for name, value in figures.items():
            if not math.isfinite(value):
                raise ConvergenceError(
                    f"training: {self._prefix}_{name} is {value}; lower optimizer.lr, set clip_norm, or check the data "
                    "for NaN"
                )
        return {f"{self._prefix}_{name}": value for name, value in figures.items()}


def _history(folder: Path, record: state.Record, monitor: _Monitor) -> History:
    seconds = sum(row["seconds"] for row in record.rows)
    best = state.load_best(folder)
    return History(record.rows, monitor.column, record.best_epoch, record.best_metric, best, seconds, record.cosines)


def _start(folder: Path, stopped: tuple[state.Record, dict[str, Any]] | None, trainer: Trainer) -> state.Record:
    """Record of the epochs done already, with the trainer as it was behind them."""
    if stopped is None:
        if trainer.group.is_main:
            state.clear(folder)
        return state.Record()
    record, trainers_part = stopped
    trainer.load_state_dict(trainers_part)
    return record


def _run_epoch(epoch: int, trainer: Trainer, monitor: _Monitor, progress: Progress | None) -> dict[str, float]:
    """Trains for one epoch and evaluates; returns its row of metrics.csv."""
    began = time.perf_counter()
    trained = trainer.train_epoch(epoch, _on_step(epoch, trainer, progress))
    rate = trained.pop("images_per_second")
    watched = monitor.figures(trainer)
    seconds = time.perf_counter() - began
    place = {"epoch": epoch + 1, "step": (epoch + 1) * trainer.steps}
    return {**place, **trained, **watched, "seconds": seconds, "images_per_second": rate}


def _on_step(epoch: int, trainer: Trainer, progress: Progress | None) -> Callable[[int], None]:
    if progress is None or not trainer.group.is_main:
        return lambda step: None
    return lambda step: progress.on_step(epoch + 1, step, trainer.steps)
