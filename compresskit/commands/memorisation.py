"""Training on corrupted labels, tested on clean ones: ExpandNets' Table 7."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import fx

from compresskit.commands.result import Table
from compresskit.commands.session import Session
from compresskit.commands.train.section import Memorisation
from compresskit.errors import RecipeError
from compresskit.storage.run_folder import slug
from compresskit.training.loop import History

FOLDER = "memorisation"


class Train(Protocol):
    """Trains one trial of a network, with its state in `folder`."""

    def __call__(self, current: Session, folder: Path, trial: int, label: str) -> tuple[fx.GraphModule, History]: ...


def check_memorisation(current: Session, options: Memorisation | None) -> None:
    """Raises RecipeError where labels cannot be corrupted."""
    if options is None:
        return
    if current.data.task != "classification":
        raise RecipeError(f"train.memorisation: it corrupts classes, but the data set is for {current.data.task}")
    if current.recipe.section("data").label_noise:
        raise RecipeError("train.memorisation: data.label_noise is set as well; leave one of them out")


def memorise(current: Session, options: Memorisation, nets: Mapping[str, Train]) -> Table:
    """A row for each level and network: errors in percent on clean test images, and on the training images as labelled.

    nets: by name, how a trial is trained. The states lie in memorisation/, one folder for each.
    """
    columns = ("corrupted labels", "network", "test error, best epoch", "test error, last", "training error")
    rows: list[tuple[Any, ...]] = []
    for level in options.label_noise:
        noisy = replace(current.recipe.section("data"), label_noise=level)
        at_level = replace(current, data=noisy.load(current.recipe.seed))
        percent = f"{100 * level:g}"
        for number, (name, train) in enumerate(nets.items()):
            folder = Path(FOLDER) / f"noise-{percent}" / f"{number}-{slug(name)}"
            label = f"{percent}% noise, {name}"
            trials = [_errors(at_level, train, folder, trial, label) for trial in range(current.recipe.trials)]
            rows.append((f"{percent}%", name, *zip(*trials, strict=True)))
    return Table("errors under corrupted labels, %", columns, rows)


def _errors(current: Session, train: Train, folder: Path, trial: int, label: str) -> tuple[float, float, float]:
    assert current.folder is not None
    network, history = train(current, current.folder.path / folder / f"trial-{trial + 1}", trial, label)
    last, memorised = current.evaluate(network), current.evaluate(network, current.data.train)
    network.load_state_dict(history.best_state)
    best = current.evaluate(network)
    first, second, third = (100 * (1 - figures["accuracy"]) for figures in (best, last, memorised))
    return first, second, third
