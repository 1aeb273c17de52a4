"""What is missing of a cell is measured, and written as soon as it is known."""

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from rivals.bench import Bench, Refused
from rivals.cells import MODEL, Cell, spent, trained
from rivals.methods import METHODS, Verb

import compresskit

PACKAGES = {"torch_pruning": "torch-pruning", "fasterai": "fasterai", "fastai": "fastai"}


def measure(bench: Bench, method: str, size: float, epochs: Iterable[int], cells: Path) -> Cell:
    """The whole cell, as it is in the folder `cells` when this returns. epochs: of fine-tuning, each from the start."""
    cell = Cell(bench.name, method, size)
    cell = cell.read(cells) or _pruned(bench, cell, cells)
    if cell.failed is None:
        for count in epochs:
            if cell.stage(trained(count)) is None:
                _finetune(bench, cell, count, cells)
    return cell


def _pruned(bench: Bench, cell: Cell, cells: Path) -> Cell:
    method, folder = METHODS[cell.method], cell.folder(cells)
    folder.mkdir(parents=True, exist_ok=True)
    cell.versions = {"torch": torch.__version__, "compresskit": compresskit.__version__}
    cell.versions |= {PACKAGES[name]: version(PACKAGES[name]) for name in method.needs}
    began = spent()
    try:
        method.fill(cell, bench, folder)
        cell.seconds = round(spent() - began, 1)
    except Exception as error:
        if isinstance(method, Verb) and not isinstance(error, Refused):
            raise  # a package may fail in any way, and that is a result; a fault of ours is to be mended
        cell.failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    cell.write(cells)
    return cell


def _finetune(bench: Bench, cell: Cell, epochs: int, cells: Path) -> None:
    """A stage more: the recipe's `finetune` for so many epochs, from the net that the method has kept."""
    folder = cell.folder(cells)
    out, began = folder / f"finetune-{epochs}", spent()
    bench.run("finetune", folder / MODEL, out, f"finetune.epochs={epochs}")
    found: Mapping[str, list[float]] = {
        row["name"]: row["after"] for row in json.loads((out / "report.json").read_text())["figures"]
    }
    seconds = round(spent() - began, 1)
    cell.stages.append(
        {"stage": trained(epochs), "accuracy": found["test accuracy"][0], "seconds": seconds, "taken": True}
    )
    cell.write(cells)
    shutil.rmtree(out)
