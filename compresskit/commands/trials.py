"""Training a network, or one for each trial, and keeping what came of it."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compresskit.commands.analyses import analyse, draw_learning_curves
from compresskit.commands.figures import Figures, compared
from compresskit.commands.jobs.job import Job, attempts
from compresskit.commands.parents import MODEL, not_finite
from compresskit.commands.result import Result, Table, counted
from compresskit.commands.session import Progress, Session, Start, trial_folder
from compresskit.commands.teacher import teacher_for, teacher_notes
from compresskit.commands.train.section import FreshTraining
from compresskit.data.dataset import DataSet
from compresskit.data.own.targets import OWN
from compresskit.errors import CheckpointError, ConvergenceError, RecipeError
from compresskit.graph.channels.plain import plain_layers
from compresskit.graph.masks import Masks
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.run_folder import check_disk
from compresskit.training.layer_rates import owners
from compresskit.training.loop import ON_TEST_SET, History, check, fit
from compresskit.training.options import Training
from compresskit.training.tasks.evaluation import METRICS, higher_is_better

BEST = "best.pt"
MAIN = tuple(
    f"_{next(iter(metrics))}" for metrics in METRICS.values() if metrics
)  # ends of the columns that progress shows
STATE_COPIES = 6  # weights on disk: model, best, best weights, and the state with up to two moments of the optimiser


@dataclass(frozen=True)
class Trial:
    """What one trial ended with."""

    seed: int
    path: Path
    before: Figures | None
    after: Figures
    best: dict[str, float]
    history: History
    reloaded: float


class EpochProgress:
    """Tells a command's progress what the training loop does."""

    def __init__(self, progress: Progress, label: str, epochs: int, shown: tuple[str, ...] = MAIN) -> None:
        """shown: ends of the names of figures that are told."""
        self._progress, self._epochs, self._label, self._shown = progress, epochs, label, shown
        self._note = ""
        self._started = False

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        if not self._started:
            self._progress.start(self._label, self._epochs * steps)
            self._started = True
        self._progress.update((epoch - 1) * steps + step, self._note)

    def on_epoch(self, row: Mapping[str, float]) -> None:
        shown = {name: value for name, value in row.items() if name.endswith(self._shown)}
        self._note = " ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._progress.log(f"{self._label}: epoch {row['epoch']:.0f} of {self._epochs}, {self._note}")


def train_network(
    current: Session,
    network: fx.GraphModule,
    options: Training,
    seed: int,
    folder: Path,
    label: str,
    masks: Masks | None = None,
    original: fx.GraphModule | None = None,
) -> History:
    """Trains `network` in place with its state in `folder`; goes on from there when the run is resumed.

    original: the network that the run starts from, which can be the teacher.
    """
    shown = MAIN if current.data.task != OWN else tuple(f"_{name}" for name in current.metrics)
    progress = EpochProgress(current.progress, label, options.epochs, shown)
    return fit(
        network,
        current.data,
        options,
        seed=seed,
        device=current.device,
        folder=folder,
        resume=current.arguments.resume,
        group=current.group,
        progress=progress,
        teacher=teacher_for(current, network, options, original),
        masks=masks,
        metrics=current.metrics,
    )


def plain_parent(current: Session, trial: int) -> Start:
    """The trained network that a trial starts from, with plain layers wherever there are weights; a note says so."""
    start = current.parent(trial)
    network, changed = plain_layers(start.network, current.data.input_shape)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        current.progress.note(
            "weights that forward computes or has as arguments, and those inside attention as one module, became those "
            f"of plain layers, so that channels may go: {', '.join(changed[:3])}{more}; retraining trains them as they "
            "are"
        )
    return replace(start, network=network)


def train_trials(current: Session, options: Training, start: Callable[[int], Start]) -> Result:
    """Trains one network for each trial; the best of them by what training monitors becomes the run's model.pt."""
    count = current.recipe.trials
    assert current.folder is not None
    trials = attempts(
        current,
        {
            trial_folder(current, trial, count): partial(_train_trial, current, options, start, trial, count)
            for trial in range(count)
        },
    )
    if count > 1 and current.group.is_main:
        _promote(current, trials)
    result = _result(current, options, trials)
    name, histories = current.recipe.name, [trial.history for trial in trials]
    draw_learning_curves(current, histories)
    analyse(current, result, {name: histories}, {name: trials[0].path})
    return result


def trial_jobs(current: Session, options: Training, start_of: Callable[[int], Start], cost: float = 0.0) -> list[Job]:
    """The trainings of `train_trials`. cost: of one; see `Job`."""
    count = current.recipe.trials

    def work(trial: int) -> None:
        _worked(current, options, start_of(trial), trial, count)

    return [Job(trial_folder(current, trial, count), partial(work, trial), cost) for trial in range(count)]


def check_training(
    current: Session, network: fx.GraphModule, options: Training, original: fx.GraphModule | None = None
) -> int:
    """Steps of an epoch, if `network` can be trained so. Raises RecipeError or CheckpointError where it cannot."""
    teacher_for(current, network, options, original)
    train: FreshTraining | None = current.recipe.train if current.verb in ("train", "expand") else None
    landscape = train.landscape if train is not None else None
    if landscape is not None and landscape.drawn == "error" and current.data.task != "classification":
        raise RecipeError(f"train.landscape.drawn: error is a classifier's; of {current.data.task} draw the loss")
    if options.layerwise_rates is not None and options.layerwise_rates.steers is not None:
        owners(network)
    return check(network, current.data, options, current.device, current.group, current.metrics)


def check_room(
    current: Session, networks: Iterable[fx.GraphModule], folder: Path, runs: int = 1, epochs: int = 0, passing: int = 0
) -> None:
    """Raises ResourceError if the disk cannot hold what all trials of so many runs of each network will write.

    epochs: whose weights are kept, each. passing: copies of the weights that one run at a time has beside all that.
    """
    weights = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())
    check_disk(folder, ((STATE_COPIES + epochs) * current.recipe.trials * runs + passing) * weights)


def _train_trial(
    current: Session, options: Training, start_of: Callable[[int], Start], trial: int, count: int
) -> Trial:
    seed, path, start = current.recipe.seed + trial, trial_folder(current, trial, count) / MODEL, start_of(trial)
    before = None
    if start.path is not None:
        before = current.figures(start.network, current.evaluate(start.network), start.path, start.masks)
    history, metrics, best_metrics = _worked(current, options, start, trial, count)
    after = current.figures(start.network, metrics, path, start.masks)
    reloaded = current.reload_difference(start.network, path)
    return Trial(seed, path, before, after, best_metrics, history, reloaded)


def _worked(
    current: Session, options: Training, start: Start, trial: int, count: int
) -> tuple[History, dict[str, float], dict[str, float]]:
    """Trains the start's network in place, and writes it and its best epoch: what takes long of a trial.

    Returns test metrics of both behind the history.
    """
    label = f"{current.verb} {trial + 1} of {count}" if count > 1 else current.verb
    original = start.network if start.path is not None else None
    seed, folder = current.recipe.seed + trial, trial_folder(current, trial, count)
    history = train_network(current, start.network, options, seed, folder, label, start.masks, original)
    metrics = _kept(current, start.network, folder / MODEL, seed, start)
    best = copy.deepcopy(start.network)
    best.load_state_dict(history.best_state)
    return history, metrics, _kept(current, best, folder / BEST, seed, start)


def _kept(current: Session, network: fx.GraphModule, path: Path, seed: int, start: Start) -> dict[str, float]:
    """Test metrics of the network, with which its checkpoint is at `path` now, if a process has not left it there."""
    if current.by_processes and (known := _left(network, path)) is not None:
        return known
    metrics = current.evaluate(network)
    keep(current, network, path, seed, metrics, start)
    return metrics


def _left(network: fx.GraphModule, path: Path) -> dict[str, float] | None:
    """Metrics that the checkpoint tells of these very weights."""
    try:
        checkpoint = load(path)
    except CheckpointError:  # made again, and then it is told
        return None
    own, found = network.state_dict(), checkpoint.network.state_dict()
    same = own.keys() == found.keys() and all(torch.equal(own[name].cpu(), found[name]) for name in own)
    return checkpoint.history[-1]["metrics"] if same and checkpoint.history else None


def keep(
    current: Session, network: fx.GraphModule, path: Path, seed: int, metrics: dict[str, float], start: Start
) -> None:
    """Writes a checkpoint whose history is the parent's and whose masks the start's, with this command behind it.

    Raises ConvergenceError for a net that came out with numbers that are not finite.
    """
    for name, told in not_finite(network).items():
        raise ConvergenceError(
            f"{current.verb}: {name} came out with NaN or infinity ({told}), so {path.name} is not written; check the "
            "weights that it started from, the data and the rates"
        )
    data, parent = current.data, start.checkpoint
    checkpoint = Checkpoint(
        network=network,
        model=parent.model if parent else asdict(current.recipe.section("model")),
        input_shape=data.input_shape,
        task=data.task,
        preprocessing=_preprocessing(data),
        history=[*(parent.history if parent else []), current.history(network, seed, metrics, start.path)],
        masks=dict(start.masks),
    )
    if current.group.is_main:
        save(checkpoint, path)
    current.group.barrier()


def _preprocessing(data: DataSet) -> dict[str, Any]:
    """What a checkpoint tells of the inputs, and the names of the classes where there are any."""
    told = {"mean": list(data.mean), "std": list(data.std), "bytes": list(data.of_bytes)}
    return told | ({"classes": list(data.classes)} if data.classes else {})


def _promote(current: Session, trials: list[Trial]) -> None:
    """Copies the best trial's checkpoints to the top of the run folder, where a Makefile looks for them."""
    assert current.folder is not None
    best = trials[best_trial([trial.history for trial in trials], current.data.task)]
    for name in (MODEL, BEST):
        current.folder.copy(best.path.with_name(name), name)


def best_trial(histories: Sequence[History], task: str) -> int:
    """Number of the trial with the best last epoch by the metric that training monitors."""
    monitor = histories[0].monitor
    pick = max if higher_is_better(task, monitor.partition("_")[2]) else min
    return pick(range(len(histories)), key=lambda trial: histories[trial].rows[-1][monitor])


def _result(current: Session, options: Training, trials: list[Trial]) -> Result:
    before = [trial.before for trial in trials if trial.before is not None]
    metric = next(iter(trials[0].best))
    rows: list[tuple[Any, ...]] = [
        (t.seed, t.after.metrics[metric], t.best[metric], t.history.best_epoch, t.history.seconds) for t in trials
    ]
    columns = ("seed", f"test {metric}, last", f"test {metric}, best epoch", "best epoch", "seconds")
    result = Result(current.verb, current.recipe.name, current.folder.path if current.folder else None)
    batch = current.recipe.report.latency_batch
    result.figures = compared(before, [trial.after for trial in trials], batch, current.device)
    result.checks = {"model.pt read back": max(trial.reloaded for trial in trials)}
    result.tables = [Table(f"{current.verb}: {counted(options.epochs, 'epoch')}", columns, rows)]
    if current.data.validation is None:
        result.notes.append(ON_TEST_SET)
    result.notes += teacher_notes(options)
    if current.recipe.trials > 1:
        seed = trials[best_trial([trial.history for trial in trials], current.data.task)].seed
        result.notes.append(f"model.pt is that of seed {seed}, the best by {trials[0].history.monitor}")
    result.details = {
        "monitor": trials[0].history.monitor,
        "trials": [{"seed": t.seed, "rows": t.history.rows} for t in trials],
    }
    return result
