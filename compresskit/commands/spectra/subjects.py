"""The networks that `spectra.isometry` looks at: the command's own, those that `compare` names, and those of a grid."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compresskit.commands.parents import check_fits, checkpoint_file
from compresskit.commands.recipe import Recipe, variant
from compresskit.commands.session import Arguments, Start
from compresskit.commands.spectra.section import IsometryOfNetworks
from compresskit.commands.train.initial import untrained_start
from compresskit.commands.train.section import name_of_cell
from compresskit.data.dataset import DataSet
from compresskit.errors import CheckpointError, RecipeError, UnsupportedModelError
from compresskit.graph.trace import traced
from compresskit.passes.initialise.stack import unstacked
from compresskit.passes.isometry.plan import Plan, plan_isometry
from compresskit.storage.checkpoint import load

WHERE = "spectra.isometry"
REPORT = "report.json"


@dataclass(frozen=True)
class Subject:
    """A network by its name in the tables. where: the key that names it, which messages start with.

    source: what it comes from, in words. make: reads or draws it. path: its file; None where training would start it.
    cell: row and column of the grid that it is of.
    """

    name: str
    where: str
    source: str
    make: Callable[[], Start]
    path: Path | None = None
    cell: tuple[str, str] | None = None

    def start(self, device: torch.device) -> Start:
        """The network on the device, with the layers of stacks one by one."""
        start = self.make()
        return replace(start, network=unstacked(start.network).to(device))

    def plan(self, start: Start, data: DataSet, options: IsometryOfNetworks) -> Plan:
        """Raises RecipeError for a network that does not take the data, or lacks what the options name."""
        try:
            return plan_isometry(start.network, data.input_shape, options)
        except RecipeError as error:
            raise RecipeError(f"{self.where}: {error}") from error
        except (UnsupportedModelError, RuntimeError, ValueError) as error:  # what torch says of shapes that do not fit
            raise RecipeError(
                f"{self.where}: the network does not take the data's inputs of shape {data.input_shape}; use those "
                "that it was made for"
            ) from error


def subjects(start: Start, arguments: Arguments, recipe: Recipe, data: DataSet, device: torch.device) -> list[Subject]:
    """The command's own, whose start is given, and the others in the order of the recipe.

    What training would start is drawn at once and kept; of checkpoints, which may be many, only the path is.
    Raises RecipeError for changes that cannot be, and names that come twice; CheckpointError for no run or comparison.
    """
    options: IsometryOfNetworks = recipe.section("spectra").isometry
    source = "the recipe" if arguments.checkpoint is None else str(arguments.checkpoint)
    own = Subject(recipe.name, WHERE, source, lambda: start, arguments.checkpoint)
    if recipe.name in options.compare:
        raise RecipeError(f"{WHERE}.compare: {recipe.name!r} is the recipe's own network; take another name")
    found = [own]
    for name, what in options.compare.items():
        where = f"{WHERE}.compare.{name}"
        if isinstance(what, str):
            found.append(_trained(name, where, Path(what), data))
        else:
            found.append(_untrained(name, where, what, arguments, recipe, data, device))
    if options.grid is not None:
        found += _cells(Path(options.grid), data)
    names = [subject.name for subject in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"{WHERE}.grid: {twice!r} is the name of another network, too; rename it in `compare`")
    return found


def _untrained(
    name: str,
    where: str,
    changes: dict[str, Any],
    arguments: Arguments,
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
) -> Subject:
    changed = variant(arguments.recipe, arguments.changes, changes, where)
    if changed.data != recipe.data:
        raise RecipeError(f"{where}: all networks look at the same images; leave `data` as it is")
    try:
        start = untrained_start(changed, data, device)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    return Subject(name, where, f"the recipe with {json.dumps(changes)}", lambda: start)


def _trained(name: str, where: str, path: Path, data: DataSet, cell: tuple[str, str] | None = None) -> Subject:
    def read() -> Start:
        try:
            file = checkpoint_file(path)
            checkpoint = load(file)
            check_fits(checkpoint, file, data)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        return Start(traced(checkpoint.network), masks=checkpoint.masks)

    return Subject(name, where, str(path), read, path / "model.pt" if path.is_dir() else path, cell)


def _cells(path: Path, data: DataSet) -> Iterator[Subject]:
    """Of the run at `path` every cell that was trained; the run's own network may be one of them."""
    where = f"{WHERE}.grid"
    try:
        entries = json.loads((path / REPORT).read_text())["details"]["compare"]
        trained = [(entry["row"], entry["column"], entry["folder"]) for entry in entries if entry["trained"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where}: {path} is no run of `train.compare` that has ended; name the folder of one"
        ) from error
    for row, column, folder in trained:
        name = name_of_cell(row, column).replace("/", "_")
        yield _trained(name, f"{where}, {name}", path / folder, data, (row, column))
