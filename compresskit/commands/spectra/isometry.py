"""The part `isometry` of `spectra`: Jacobians of the network and of those beside it, and which inputs reach what."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compresskit.commands.recipe import Recipe
from compresskit.commands.result import Result, Table
from compresskit.commands.session import Arguments, Progress, Start
from compresskit.commands.spectra.isometry_report import OUTPUT, Measured, add_isometry, figures_of, plan_table
from compresskit.commands.spectra.section import IsometryOfNetworks
from compresskit.commands.spectra.subjects import Subject, subjects
from compresskit.data.dataset import DataSet
from compresskit.errors import UnsupportedModelError
from compresskit.graph.reachability import Reachability, reachability
from compresskit.jobs.lanes import Counter
from compresskit.passes.isometry.network import isometry
from compresskit.plots.isometry import by_column, by_depth, of_layer, reached
from compresskit.storage.atomic import write_arrays
from compresskit.storage.run_folder import RunFolder


class Isometries:
    """Of the network that the command looks at and of those beside it; checked when it is made."""

    def __init__(self, start: Start, arguments: Arguments, recipe: Recipe, data: DataSet, device: torch.device) -> None:
        self._options: IsometryOfNetworks = recipe.section("spectra").isometry
        self._data, self._device, self._seed = data, device, recipe.seed
        self._subjects = subjects(start, arguments, recipe, data, device)
        self._planned = [self._plan_of(one) for one in self._subjects]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Checkpoints of the networks beside."""
        return tuple(one.path for one in self._subjects[1:] if one.path is not None)

    def _plan_of(self, subject: Subject) -> Table:
        return plan_table(subject.name, subject.plan(subject.start(self._device), self._data, self._options))

    def plan(self) -> list[Table]:
        """What a dry run shows."""
        rows = [row for table in self._planned for row in table.rows]
        names = [(one.name, one.source) for one in self._subjects]
        beside = [Table("isometry: networks", ("network", "from"), names)] if len(names) > 1 else []
        return [replace(self._planned[0], rows=rows), *beside]

    def measure(self, folder: RunFolder, progress: Progress, result: Result, *, drawn: bool) -> None:
        """Adds to the report; writes isometry.csv and singular-values.npz, and draws."""
        sample = self._data.test.sample(self._options.images)
        images, _ = next(sample.batches(len(sample), self._device))
        found: dict[str, Measured] = {}
        for subject in self._subjects:
            start = subject.start(self._device)
            plan = subject.plan(start, self._data, self._options)
            progress.start(f"isometry of {subject.name}", len(plan.parts) * -(-len(images) // plan.at_once))
            measured = isometry(plan, images, self._seed, Counter(progress))
            found[subject.name] = Measured(measured, *self._reached(start))
        add_isometry(result, found, self._options, len(images))
        result.notes += _origins(self._subjects)
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
        cells = {one.cell: found[one.name].isometry for one in self._subjects if one.cell is not None}
        if len({column for _, column in cells}) > 1:
            by_column(path / "isometry-grid.png", cells)
        paths = {name: one.reachability for name, one in found.items() if one.reachability is not None}
        if paths:
            reached(path / "reachability.png", paths)


def _origins(found: list[Subject]) -> list[str]:
    """A note where trained networks stand beside others that are not."""
    trained = [one.name for one in found if one.path is not None]
    fresh = [one.name for one in found if one.path is None]
    if not trained or not fresh:
        return []
    return [
        f"isometry: {', '.join(trained)} as its checkpoint has it, trained, and {', '.join(fresh)} as training would "
        "start it; compare trained ones by their checkpoints, or leave these out to compare starts with each other"
    ]


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
