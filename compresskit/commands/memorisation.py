"""Training on corrupted labels, tested on clean ones: ExpandNets' Table 7."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import fx

from compresskit.commands.jobs.job import Job, attempt
from compresskit.commands.result import Table
from compresskit.commands.session import Session
from compresskit.commands.train.section import Memorisation
from compresskit.data.layout import load_set
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
        at_level = _noisy(current, level)
        for number, name in enumerate(nets):
            work = {
                _folder(current, level, number, name, trial): partial(_errors, at_level, nets, level, number, trial)
                for trial in range(current.recipe.trials)
            }
            trials = [found for folder, each in work.items() if (found := attempt(current, folder, each)) is not None]
            rows.append((f"{100 * level:g}%", name, *(zip(*trials, strict=True) if trials else ["failed"] * 3)))
    return Table("errors under corrupted labels, %", columns, rows)


def memorisation_jobs(
    current: Session, options: Memorisation, nets: Mapping[str, Train], cost: float = 0.0
) -> list[Job]:
    """The trainings of `memorise`. cost: of one; see `Job`."""

    def train(level: float, number: int, trial: int) -> None:
        _trained(_noisy(current, level), nets, level, number, trial)

    return [
        Job(_folder(current, level, number, name, trial), partial(train, level, number, trial), cost)
        for level in options.label_noise
        for number, name in enumerate(nets)
        for trial in range(current.recipe.trials)
    ]


def _noisy(current: Session, level: float) -> Session:
    """The session with that share of the labels corrupted."""
    noisy = replace(current.recipe.section("data"), label_noise=level)
    return replace(current, data=load_set(noisy, current.recipe.seed))


def _folder(current: Session, level: float, number: int, name: str, trial: int) -> Path:
    assert current.folder is not None
    below = f"noise-{100 * level:g}/{number}-{slug(name)}/trial-{trial + 1}"
    return current.folder.path / FOLDER / below


def _trained(
    current: Session, nets: Mapping[str, Train], level: float, number: int, trial: int
) -> tuple[fx.GraphModule, History]:
    name, train = list(nets.items())[number]
    folder = _folder(current, level, number, name, trial)
    return train(current, folder, trial, f"{100 * level:g}% noise, {name}")


def _errors(
    current: Session, nets: Mapping[str, Train], level: float, number: int, trial: int
) -> tuple[float, float, float]:
    network, history = _trained(current, nets, level, number, trial)
    last, memorised = current.evaluate(network), current.evaluate(network, current.data.train)
    network.load_state_dict(history.best_state)
    best = current.evaluate(network)
    first, second, third = (100 * (1 - figures["accuracy"]) for figures in (best, last, memorised))
    return first, second, third
