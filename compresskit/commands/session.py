"""What every command starts from: recipe, data, device and processes, run folder and checkpoints."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import fx

from compresskit.commands.figures import Figures, figures
from compresskit.commands.parents import (
    built,
    check_contracted,
    check_finite,
    check_fits,
    check_unmasked,
    find_parents,
)
from compresskit.commands.recipe import Recipe, load_recipe
from compresskit.data.dataset import DataSet, Split
from compresskit.data.layout import load_set
from compresskit.distributed import Group, connect, device_kind, device_name
from compresskit.errors import CheckpointError
from compresskit.graph.doors.entry import entry_of
from compresskit.graph.masks import Masks
from compresskit.graph.shapes import evaluating
from compresskit.jobs.lanes import Counter, Lane
from compresskit.jobs.places import Task, device_of, wanted
from compresskit.numerics.outputs import largest_difference
from compresskit.recipes.yaml_reader import to_yaml
from compresskit.storage.checkpoint import Checkpoint, ForeignFile, load
from compresskit.storage.reading import file_hash
from compresskit.storage.record import provenance
from compresskit.storage.run_folder import RunFolder, check_shared, open_run_folder
from compresskit.training.inputs import check_inputs
from compresskit.training.seeds import set_determinism
from compresskit.training.tasks.evaluation import evaluate, watched
from compresskit.training.tasks.own import OwnMetrics, own_metrics


class Progress(Lane, Protocol):
    """Where a command says what it is doing."""

    def lane(self, name: str) -> Lane:
        """Beside this one, that of a job of that name."""
        ...


@dataclass(frozen=True)
class Arguments:
    """The command line beside the verb."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    checkpoint: Path | None = None
    out: Path | None = None
    device: str = "auto"
    seed: int | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    jobs: str = "1"  # at a time: a number, or auto
    task: Task | None = None  # of a process that does one job of a run; None: the one that the user has started
    held: ExitStack | None = None  # who keeps the run folder locked until the report is written; None: the session

    @property
    def changes(self) -> tuple[str, ...]:
        """Of the recipe: overrides, and the seed over them."""
        return self.overrides + ((f"seed={self.seed}",) if self.seed is not None else ())


@dataclass(frozen=True)
class Start:
    """Where a trial starts: a network with its masks, and the file and checkpoint it came from, if it did."""

    network: fx.GraphModule
    path: Path | None = None
    checkpoint: Checkpoint | None = None
    masks: Masks = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """One command at work. parents: the checkpoints it reads. folder: None until `with_folder` made it.

    several: whether it has jobs of which one can fail without the others. failed: by folder, what stopped those.
    """

    verb: str
    arguments: Arguments
    recipe: Recipe
    data: DataSet
    device: torch.device
    group: Group
    parents: tuple[Path, ...]
    folder: RunFolder | None
    progress: Progress
    held: ExitStack  # what is let go of when the session ends
    several: bool = False
    by_processes: bool = False  # that did its jobs, and left what came of them in files
    failed: dict[Path, Exception] = field(default_factory=dict)

    def fresh(self, trial: int) -> Start:
        """The recipe's model, traced, with random weights drawn from the trial's seed (or those that it names)."""
        return Start(self._came_in(built(self.recipe, self.data, trial)))

    def parent(self, trial: int) -> Start:
        """The trained network that a trial starts from: a checkpoint, or the recipe's model with weights of its own."""
        if not self.parents:
            start = replace(self.fresh(trial), path=Path(self.recipe.section("model").weights))
            check_finite(start.network, start.path or Path())
            return start
        path = self.parents[trial if len(self.parents) > 1 else 0]
        try:
            checkpoint = load(path, self.device)
        except ForeignFile as error:
            return self._from_state(path, trial, error)
        check_finite(checkpoint.network, path)
        check_fits(checkpoint, path, self.data)
        check_inputs(checkpoint.network, self.data)
        if self.verb in ("fuse", "reconstruct", "prune"):
            check_contracted(checkpoint, path, self.verb)
        if self.verb in ("fuse", "reconstruct", "expand"):
            check_unmasked(checkpoint, path, f"'{self.verb}'")
        return Start(checkpoint.network, path, checkpoint, checkpoint.masks)

    def _from_state(self, path: Path, trial: int, error: CheckpointError) -> Start:
        """The recipe's model with the state dict of a file, as its `weights` would be."""
        if self.recipe.model is None:
            raise CheckpointError(f"{error}, or its model into the recipe, as `model`") from error
        network = self._came_in(built(self.recipe, self.data, trial, path))
        check_finite(network, path)
        return Start(network, path)

    def _came_in(self, network: fx.GraphModule) -> fx.GraphModule:
        """The network on the session's device, with what its graph takes for granted said."""
        entry = entry_of(network)
        if entry is not None and entry.assumed:
            self.progress.note(str(entry))
        return network.to(self.device, torch.float32)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that the command starts from."""
        weights = getattr(self.recipe.model, "weights", None)
        return self.parents or ((Path(weights),) if weights else ())

    @property
    def held_out(self) -> Split:
        """Images that training does not see: the validation split, or the test set where there is none."""
        return self.data.validation or self.data.test

    def evaluate(self, network: fx.GraphModule, split: Split | None = None) -> dict[str, float]:
        """Metrics on the test set, or on `split`."""
        split, size = split or self.data.test, self.recipe.moments.batch_size
        self.progress.start("evaluation, batches", -(-len(split) // size))
        return evaluate(
            network, split, task=self.data.task, anchors=self.data.anchors, device=self.device, batch_size=size,
            group=self.group, metrics=self.metrics, on_batch=Counter(self.progress),
        )  # fmt: skip

    @property
    def metrics(self) -> OwnMetrics:
        """The user's own, by name."""
        return own_metrics(self.recipe.report.metrics or ())

    @property
    def about(self) -> dict[str, Any]:
        """What tells whose figures can be compared: the device, and the main metric with the images it is taken of."""
        name, metric = next(iter(watched(self.data.task, self.data.outputs, self.metrics).items()))
        return {
            "device": device_name(self.device),
            "task": self.data.task,
            "metric": name,
            "higher_is_better": metric.higher_is_better,
            "test data": self.data.test.fingerprint,
        }

    def figures(
        self, network: fx.GraphModule, metrics: dict[str, float], path: Path, masks: Masks | None = None
    ) -> Figures:
        options, shape = self.recipe.report, self.data.input_shape
        batch, repeats = options.latency_batch, options.latency_repeats
        return figures(network, shape, metrics, self.device, path, batch, repeats, masks or {})

    def inputs_of(self, split: Split) -> Iterator[Any]:
        """Batches of the inputs alone, as many at a time as moments take."""
        return (inputs for inputs, _ in split.batches(self.recipe.moments.batch_size, self.device))

    def reload_difference(self, network: fx.GraphModule, path: Path) -> float:
        """Largest difference on one batch between `network` and its checkpoint read back; 0 is what is promised."""
        inputs, _ = next(self.data.test.batches(64, self.device))
        with torch.inference_mode(), evaluating(network):
            return largest_difference(network(inputs), load(path, self.device).network(inputs))

    def history(
        self, network: fx.GraphModule, seed: int, metrics: dict[str, float], parent: Path | None
    ) -> dict[str, Any]:
        """The entry that this command adds to the history of a checkpoint, with how the network came in if it did."""
        entry = entry_of(network)
        return {
            "verb": self.verb,
            "recipe": self.recipe.plain(),
            "metrics": metrics,
            "parent": file_hash(parent) if parent else None,
            "seed": seed,
            **({"entry": entry.plain()} if entry else {}),
            **provenance(),
        }


@contextmanager
def session(
    verb: str,
    arguments: Arguments,
    sections: tuple[str, ...],
    progress: Progress,
    *,
    from_checkpoint: bool = False,
) -> Iterator[Session]:
    """Reads the recipe and loads the data, before any work starts; writes nothing yet.

    sections: those that the recipe must have. from_checkpoint: the command works on a trained net.
    """
    recipe = load_recipe(arguments.recipe, arguments.changes, verb=verb, require=sections)
    own_metrics(recipe.report.metrics or ())  # what cannot be found is said before the data are loaded
    parents = find_parents(arguments.checkpoint, recipe, verb) if from_checkpoint else ()
    kind = device_kind(arguments.device)
    wanted(arguments.jobs, kind, int(os.environ.get("WORLD_SIZE", "1")))
    if recipe.deterministic:
        set_determinism(recipe.seed, strict=True)
    with closing(connect(kind)) as group, ExitStack() as held:
        data = _load(recipe, group, progress)
        watched(data.task, data.outputs, own_metrics(recipe.report.metrics or ()))
        device = device_of(kind, group, arguments.task)
        yield Session(verb, arguments, recipe, data, device, group, parents, None, progress, held)


def folder_named(current: Session) -> Session:
    """The session with its run folder, which this process does not make: a job's, or a dry run's."""
    return replace(current, folder=RunFolder(run_path(current)))


def with_folder(current: Session) -> Session:
    """The session with its run folder made and locked: to be called when all that can be refused has been looked at."""
    folder, plain = RunFolder(run_path(current)), current.recipe.plain()

    def make() -> None:
        opened = open_run_folder(
            folder.path,
            current.verb,
            plain,
            force=current.arguments.force,
            resume=current.arguments.resume,
            inputs=current.inputs,
            data=current.data.fingerprint,
            about=current.about,
        )
        (current.arguments.held or current.held).enter_context(opened)
        folder.write_text("recipe.yaml", to_yaml(plain))

    current.group.in_main(make)
    check_shared(folder.path, current.group)
    return replace(current, folder=folder)


def run_path(current: Session) -> Path:
    return current.arguments.out or Path("runs") / f"{current.recipe.name}-{current.verb}"


def trial_folder(current: Session, trial: int, trials: int) -> Path:
    """Folder of one trial: the run's own where there is one trial only."""
    assert current.folder is not None
    return current.folder.path / f"trial-{trial + 1}" if trials > 1 else current.folder.path


def load_data(recipe: Recipe, progress: Progress) -> DataSet:
    """The recipe's data, with what is odd about them said."""
    data = load_set(recipe.section("data"), recipe.seed)
    for note in data.notes:
        progress.note(note)
    return data


def _load(recipe: Recipe, group: Group, progress: Progress) -> DataSet:
    """The recipe's data; the main process goes first, so that it alone downloads."""
    loaded: list[DataSet] = []

    def first() -> None:
        loaded.append(load_data(recipe, progress))

    group.in_main(first)
    return loaded[0] if loaded else load_data(recipe, progress)
