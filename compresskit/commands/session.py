"""What every command starts from: recipe, data, device and processes, run folder and checkpoints."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import fx

from compresskit.commands.figures import Figures, figures
from compresskit.data.dataset import DataSet, Split
from compresskit.errors import CheckpointError, RecipeError, ResourceError
from compresskit.graph.shapes import evaluating
from compresskit.graph.trace import trace
from compresskit.recipes.load import load_recipe
from compresskit.recipes.schema import Recipe
from compresskit.recipes.yaml_reader import to_yaml
from compresskit.storage.checkpoint import Checkpoint, file_hash, load
from compresskit.storage.run_folder import RunFolder, open_run_folder, provenance
from compresskit.training.distributed import Group, connect
from compresskit.training.evaluation import evaluate
from compresskit.training.seeds import set_determinism

MODEL = "model.pt"


class Progress(Protocol):
    """Where a command says what it is doing."""

    def start(self, task: str, total: int) -> None: ...

    def update(self, done: int, note: str = "") -> None: ...

    def log(self, text: str) -> None: ...


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


@dataclass(frozen=True)
class Start:
    """Where a trial starts: a network, and the file and checkpoint it came from, if it did."""

    network: fx.GraphModule
    path: Path | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Session:
    """One command at work. parents: the checkpoints it reads. folder: None until `with_folder` made it."""

    verb: str
    arguments: Arguments
    recipe: Recipe
    data: DataSet
    device: torch.device
    group: Group
    parents: tuple[Path, ...]
    folder: RunFolder | None
    progress: Progress

    def fresh(self, trial: int) -> Start:
        """The recipe's model, traced, with random weights drawn from the trial's seed (or those that it names)."""
        torch.manual_seed(self.recipe.seed + trial)
        model = self.recipe.section("model").build(self.data.input_shape, self.data.outputs)
        return Start(trace(model).to(self.device))

    def parent(self, trial: int) -> Start:
        """The trained network that a trial starts from: a checkpoint, or the recipe's model with weights of its own."""
        if not self.parents:
            return replace(self.fresh(trial), path=Path(self.recipe.section("model").weights))
        path = self.parents[trial if len(self.parents) > 1 else 0]
        checkpoint = load(path, self.device)
        if checkpoint.input_shape != self.data.input_shape or checkpoint.task != self.data.task:
            raise CheckpointError(
                f"{path}: made for {checkpoint.task} of inputs {checkpoint.input_shape}, the recipe's data is "
                f"{self.data.task} of inputs {self.data.input_shape}; use the data that the net was trained on"
            )
        return Start(checkpoint.network, path, checkpoint)

    @property
    def held_out(self) -> Split:
        """Images that training does not see: the validation split, or the test set where there is none."""
        return self.data.validation or self.data.test

    def evaluate(self, network: fx.GraphModule, split: Split | None = None) -> dict[str, float]:
        """Metrics on the test set, or on `split`."""
        return evaluate(network, split or self.data.test, task=self.data.task, device=self.device, group=self.group)

    def figures(self, network: fx.GraphModule, metrics: dict[str, float], path: Path) -> Figures:
        options = self.recipe.report
        shape = self.data.input_shape
        return figures(network, shape, metrics, self.device, path, options.latency_batch, options.latency_repeats)

    def reload_difference(self, network: fx.GraphModule, path: Path) -> float:
        """Largest difference on one batch between `network` and its checkpoint read back; 0 is what is promised."""
        inputs, _ = next(self.data.test.batches(64, self.device))
        with torch.inference_mode(), evaluating(network):
            return float((network(inputs) - load(path, self.device).network(inputs)).abs().max())

    def history(self, seed: int, metrics: dict[str, float], parent: Path | None) -> dict[str, Any]:
        """The entry that this command adds to the history of a checkpoint."""
        return {
            "verb": self.verb,
            "recipe": self.recipe.plain(),
            "metrics": metrics,
            "parent": file_hash(parent) if parent else None,
            "seed": seed,
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
    overrides = arguments.overrides + ((f"seed={arguments.seed}",) if arguments.seed is not None else ())
    recipe = load_recipe(arguments.recipe, overrides, verb=verb, require=sections)
    parents = _parents(arguments.checkpoint, recipe, verb) if from_checkpoint else ()
    kind = _device_kind(arguments.device)
    if recipe.deterministic:
        set_determinism(recipe.seed, strict=True)
    data = recipe.section("data").load(recipe.seed)
    with closing(connect(kind)) as group:
        yield Session(verb, arguments, recipe, data, group.device(kind), group, parents, None, progress)


def with_folder(current: Session) -> Session:
    """The session with its run folder made: to be called when all that can be refused has been looked at."""
    path = run_path(current)
    if current.group.is_main:
        plain = current.recipe.plain()
        force, resume = current.arguments.force, current.arguments.resume
        folder = open_run_folder(path, current.verb, plain, force=force, resume=resume, inputs=current.parents)
        folder.write_text("recipe.yaml", to_yaml(plain))
    current.group.barrier()
    return replace(current, folder=RunFolder(path))


def run_path(current: Session) -> Path:
    return current.arguments.out or Path("runs") / f"{current.recipe.name}-{current.verb}"


def _parents(path: Path | None, recipe: Recipe, verb: str) -> tuple[Path, ...]:
    """Checkpoint files that --checkpoint names: a file, or all trials of a run folder."""
    if path is None:
        if getattr(recipe.model, "weights", None) is None:
            raise RecipeError(
                f"--checkpoint: '{verb}' works on a trained net; name a model.pt or the folder of a run, "
                "or give the recipe's model `weights`"
            )
        return ()
    if not path.is_dir():
        return (path,)
    found = sorted(path.glob(f"trial-*/{MODEL}"), key=lambda file: int(file.parent.name.split("-")[1]))
    found = found or [file for file in [path / MODEL] if file.exists()]
    if not found:
        raise CheckpointError(f"{path}: no {MODEL} in this folder; name the folder of a run that has ended")
    if 1 < len(found) < recipe.trials:
        raise RecipeError(f"trials: {recipe.trials} were asked for, {path} holds {len(found)}; lower `trials`")
    return tuple(found)


def trial_folder(current: Session, trial: int, trials: int) -> Path:
    """Folder of one trial: the run's own where there is one trial only."""
    assert current.folder is not None
    return current.folder.path / f"trial-{trial + 1}" if trials > 1 else current.folder.path


def _device_kind(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda"):
        raise RecipeError(f"--device: {asked!r} was given; allowed: auto, cpu, cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    return asked
