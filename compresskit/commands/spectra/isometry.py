"""The part `isometry` of `spectra`: Jacobians of the network and of those beside it, and which inputs reach what."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compresskit.commands.recipe import Recipe, variant
from compresskit.commands.result import Result, Table
from compresskit.commands.session import Arguments, Counter, Progress, Start
from compresskit.commands.spectra.isometry_report import OUTPUT, Measured, add_isometry, figures_of, plan_table
from compresskit.commands.spectra.section import IsometryOfNetworks
from compresskit.commands.train.initial import untrained_start
from compresskit.data.dataset import DataSet
from compresskit.errors import RecipeError, UnsupportedModelError
from compresskit.graph.reachability import Reachability, reachability
from compresskit.passes.initialise.stack import unstacked
from compresskit.passes.isometry.network import isometry
from compresskit.passes.isometry.plan import Plan, plan_isometry
from compresskit.plots.isometry import by_depth, of_layer, reached
from compresskit.storage.atomic import write_arrays
from compresskit.storage.run_folder import RunFolder

_WHERE = "spectra.isometry"


@dataclass(frozen=True)
class _Subject:
    start: Start
    plan: Plan


class Isometries:
    """Of the network that the command looks at and of those that `compare` names; checked when it is made."""

    def __init__(self, start: Start, arguments: Arguments, recipe: Recipe, data: DataSet, device: torch.device) -> None:
        self._options: IsometryOfNetworks = recipe.section("spectra").isometry
        self._data, self._device, self._seed = data, device, recipe.seed
        self._trained = arguments.checkpoint is not None
        if recipe.name in self._options.compare:
            raise RecipeError(f"{_WHERE}.compare: {recipe.name!r} is the recipe's own network; take another name")
        self._subjects = {recipe.name: self._subject(start, _WHERE)}
        for name, changes in self._options.compare.items():
            where = f"{_WHERE}.compare.{name}"
            changed = variant(arguments.recipe, arguments.changes, changes, where)
            if changed.data != recipe.data:
                raise RecipeError(f"{where}: all networks look at the same images; leave `data` as it is")
            try:
                other = untrained_start(changed, data, device)
            except RecipeError as error:
                raise RecipeError(f"{where}: {error}") from error
            self._subjects[name] = self._subject(other, where)

    def _subject(self, start: Start, where: str) -> _Subject:
        start = replace(start, network=unstacked(start.network).to(self._device))
        network = start.network
        try:
            plan = plan_isometry(network, self._data.input_shape, self._options)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
        except (UnsupportedModelError, RuntimeError, ValueError) as error:  # what torch says of shapes that do not fit
            shape = self._data.input_shape
            raise RecipeError(
                f"{where}: the network does not take the data's inputs of shape {shape}; use those that it was made for"
            ) from error
        return _Subject(start, plan)

    def plan(self) -> list[Table]:
        """What a dry run shows."""
        return [plan_table({name: subject.plan for name, subject in self._subjects.items()})]

    def measure(self, folder: RunFolder, progress: Progress, result: Result, *, drawn: bool) -> None:
        """Adds to the report; writes isometry.csv and singular-values.npz, and draws."""
        sample = self._data.test.sample(self._options.images)
        images, _ = next(sample.batches(len(sample), self._device))
        found: dict[str, Measured] = {}
        for name, subject in self._subjects.items():
            plan = subject.plan
            progress.start(f"isometry of {name}", len(plan.parts) * -(-len(images) // plan.at_once))
            measured = isometry(plan, images, self._seed, Counter(progress))
            found[name] = Measured(measured, *self._reached(subject.start))
        add_isometry(result, found, self._options, len(images))
        if self._trained and len(found) > 1:
            own, *others = found
            result.notes.append(
                f"isometry: {own} is as its checkpoint has it, trained, and {', '.join(others)} as training would "
                "start it; leave --checkpoint out to compare starts with each other"
            )
        folder.write_text("isometry.csv", figures_of(found))
        _save(folder.path / "singular-values.npz", found)
        if drawn:
            self._draw(folder.path, found)

    def _reached(self, start: Start) -> tuple[Reachability | None, str]:
        """And why it is not known, where it is not."""
        if not self._options.reachability:
            return None, ""
        network = start.network.cpu()
        try:
            return reachability(network, self._data.input_shape, start.masks, self._options.start), ""
        except UnsupportedModelError as error:
            return None, str(error)

    def _draw(self, path: Path, found: Mapping[str, Measured]) -> None:
        by_depth(path / "isometry-depth.png", {name: one.isometry for name, one in found.items()})
        of_layer(path / "isometry-layer.png", {name: one.isometry for name, one in found.items()})
        paths = {name: one.reachability for name, one in found.items() if one.reachability is not None}
        if paths:
            reached(path / "reachability.png", paths)


def _save(path: Path, found: Mapping[str, Measured]) -> None:
    """An array for each network, layer and kind: (images, values), or an estimate's nodes and weights."""
    arrays: dict[str, Any] = {}
    for name, one in found.items():
        spectra = {f"{name}/{OUTPUT}/depth": one.isometry.end}
        for layer in one.isometry.layers:
            for kind in ("own", "orthogonal", "depth"):
                spectra[f"{name}/{layer.name}/{kind}"] = getattr(layer, kind)
        for key, values in spectra.items():
            if values is not None:
                arrays[key] = values.values.cpu().numpy()
                if values.weights is not None:
                    arrays[f"{key}/weights"] = values.weights.cpu().numpy()
    write_arrays(path, arrays)
