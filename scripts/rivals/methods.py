"""The methods that are compared: the verb `prune` with its settings, and other people's packages."""

import copy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rivals.bench import CPU, Bench, Refused
from rivals.cells import MODEL, Cell, spent
from rivals.packages import Pruning, TorchPruning, at_size, fasterai
from torch import fx

from compresskit.commands.prune.stages import PruneStep
from compresskit.commands.repair.ladder import Rung
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.passes.repair.norms import estimate_norms
from compresskit.storage.checkpoint import load

BATCH = 256  # images for norms, as `prune` takes them by default
SETTINGS = {"local": False, "global": True}  # of packages: each layer alone, or all together


@dataclass(frozen=True)
class Verb:
    """`compresskit prune` with overrides; of several candidates validation images choose one."""

    label: str
    candidates: Mapping[str, tuple[str, ...]]
    needs: tuple[str, ...] = ()

    def fill(self, cell: Cell, bench: Bench, folder: Path) -> None:
        """The cell's stages, those of the best candidate, whose net comes into the folder."""
        best, refused = -1.0, list[str]()
        for name, overrides in self.candidates.items():
            out = folder / f"prune-{name}"
            try:
                bench.run("prune", bench.checkpoint, out, f"prune.target.macs={cell.size:g}%", *overrides)
            except Refused as error:
                refused.append(f"{name}: {error}")
                continue
            network, step = load(out / MODEL).network, PruneStep.read(out)
            held_out = bench.held_out(network)
            if held_out > best:
                best, cell.stages = held_out, [_rung(rung, name) for rung in step.rungs]
                _last(cell)["held_out"] = held_out
                cell.macs, cell.parameters = step.got / step.whole, count(network, bench.shape).parameters
                shutil.copyfile(out / MODEL, folder / MODEL)
        if best < 0:
            raise Refused("; ".join(refused))
        for name in self.candidates:  # behind the last: an interrupted cell goes on from those that are done
            shutil.rmtree(folder / f"prune-{name}", ignore_errors=True)


@dataclass(frozen=True)
class Package:
    """Somebody else's pruning; of its two settings validation images choose one, with and without new norms."""

    label: str
    prune: Pruning
    needs: tuple[str, ...]

    def fill(self, cell: Cell, bench: Bench, folder: Path) -> None:
        """The cell's stages, and the net of the last of them in the folder."""
        best, refused = dict[str, tuple[dict[str, Any], fx.GraphModule]](), list[str]()
        for name, whole in SETTINGS.items():
            try:
                found = list(self._stages(cell, bench, name, whole))
            except Refused as error:
                refused.append(f"{name}: {error}")
                continue
            for told, network in found:
                if told["stage"] not in best or told["held_out"] > best[told["stage"]][0]["held_out"]:
                    best[told["stage"]] = told, network
        if not best:
            raise Refused("; ".join(refused))
        cell.stages = [told | {"accuracy": bench.accuracy(network)} for told, network in best.values()]
        _, network = list(best.values())[-1]
        counts = count(network, bench.shape)
        cell.macs, cell.parameters = counts.macs / bench.whole.macs, counts.parameters
        bench.save(network, folder / MODEL)

    def _stages(
        self, cell: Cell, bench: Bench, name: str, whole: bool
    ) -> Iterator[tuple[dict[str, Any], fx.GraphModule]]:
        """What is told of a stage, but for its accuracy on the test set, and its net."""
        began = spent()
        module = at_size(bench, cell.size / 100, lambda ratio: self.prune(bench, ratio, whole))
        network = trace(module, bench.shape)
        yield _judged(bench, network, "cut", name, began), network
        began, network = spent(), copy.deepcopy(network)
        if estimate_norms(network, bench.images.batches(BATCH, CPU)):
            yield _judged(bench, network, "norms", name, began), network


Method = Verb | Package
_NO_MATCH, _MAGNITUDE = "~prune.match", "prune.criterion=magnitude"
_TORCH_PRUNING = ("torch_pruning",)
METHODS: dict[str, Method] = {
    "ours": Verb("compresskit", {"divergence": ()}),
    "ours-parallel": Verb("compresskit, in parallel", {"divergence": ("prune.repair=parallel", _NO_MATCH)}),
    "magnitude-repaired": Verb(
        "magnitude, our repair",
        {
            "local": (_MAGNITUDE, "prune.budget=uniform", _NO_MATCH),
            "global": (_MAGNITUDE, "prune.budget=global", _NO_MATCH),
        },
    ),
    "tp-magnitude": Package("Torch-Pruning, group norm", TorchPruning("GroupMagnitudeImportance"), _TORCH_PRUNING),
    "tp-taylor": Package("Torch-Pruning, Taylor", TorchPruning("GroupTaylorImportance", "gradients"), _TORCH_PRUNING),
    "tp-hessian": Package(
        "Torch-Pruning, Hessian", TorchPruning("GroupHessianImportance", "squared_gradients"), _TORCH_PRUNING
    ),
    "fasterai": Package("fasterai, magnitude", fasterai, ("torch_pruning", "fasterai", "fastai")),
}


def lacking(method: Method) -> list[str]:
    """Modules that it needs and that are not installed."""
    return [name for name in method.needs if find_spec(name) is None]


def _last(cell: Cell) -> dict[str, Any]:
    """The stage whose net was kept."""
    return next(stage for stage in reversed(cell.stages) if stage["taken"])


def _rung(rung: Rung, candidate: str) -> dict[str, Any]:
    told = {"stage": rung.name, "accuracy": round(rung.metrics["accuracy"], 4), "candidate": candidate}
    return told | {"seconds": round(rung.seconds, 1), "taken": rung.taken}


def _judged(bench: Bench, network: fx.GraphModule, stage: str, candidate: str, began: float) -> dict[str, Any]:
    seconds = round(spent() - began, 1)
    told = {"stage": stage, "held_out": bench.held_out(network), "candidate": candidate}
    return told | {"seconds": seconds, "taken": True}
