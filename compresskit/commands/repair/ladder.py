"""Repairs of a compressed network, one above the other: each is judged on held-out images, and the best goes on."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compresskit.commands.figures import said
from compresskit.commands.result import Table
from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.graph.masks import Masks
from compresskit.graph.operations import NORMS
from compresskit.passes.reconstruct.alone import loss_of
from compresskit.passes.repair.matching import Match, Matching, Places
from compresskit.passes.repair.norms import estimate_norms
from compresskit.storage.atomic import write_tensors
from compresskit.training.seeds import epoch_seed
from compresskit.training.state import weights_digest
from compresskit.training.tasks.losses import divergence_for

STATE = "match.pt"


@dataclass(frozen=True)
class Rung:
    """name: of the repair. divergence: of the outputs from the original's, on held-out images. metrics: on the test
    set, which decides nothing. taken: whether it diverges less than all before it."""

    name: str
    divergence: float
    metrics: dict[str, float]
    seconds: float
    taken: bool


def judging_split(current: Session, images: int) -> Split:
    """So many images of the validation split, or of the training images where there is none: never of the test set."""
    return (current.data.validation or current.data.train).sample(images)


def metrics_of(rungs: Sequence[Rung]) -> dict[str, float]:
    """Of the network that was taken, on the test set."""
    return next(rung.metrics for rung in reversed(rungs) if rung.taken)


class Ladder:
    """network: the best so far. original: what its outputs should be. images: so many held-out ones judge."""

    def __init__(self, current: Session, original: fx.GraphModule, images: int, label: str) -> None:
        self._current, self._original, self._label = current, original, label
        self._split, self._divergence = judging_split(current, images), divergence_for(current.data.task)
        self.rungs: list[Rung] = []
        self.network = original

    def climb(self, name: str, work: Callable[[], fx.GraphModule]) -> None:
        """Does the work, and takes what comes of it where that diverges less than the best so far."""
        began = time.perf_counter()
        network = work()
        seconds = time.perf_counter() - began
        divergence = self._current.group.share(self._loss(network))
        divergence = divergence if math.isfinite(divergence) else math.inf
        least = min((rung.divergence for rung in self.rungs), default=math.inf)
        taken = divergence < least or not self.rungs
        self.rungs.append(Rung(name, divergence, self._current.evaluate(network), seconds, taken))
        if taken:
            self.network = network
        told = said(self.rungs[-1].metrics) + ("" if taken else ", which diverges more than before: not taken")
        self._current.progress.log(f"{self._label}: {name}, {told}")

    def norms(self, samples: int) -> None:
        """A rung for batch norms estimated again on so many training images, where there are any.

        Behind least squares they may well lose: those give outputs of less variance, by what they cannot explain, and
        norms would make that up by making errors larger.
        """
        if any(isinstance(module, NORMS) for module in self.network.modules()):
            self.climb("norms", lambda: self._with_norms(samples))

    def match(
        self, options: Match | None, folder: Path, seed: int, places: Places | None = None, masks: Masks | None = None
    ) -> None:
        """A rung for all weights together. folder: of what an interrupted run goes on from. places: see `Matching`."""
        if options is not None:
            self.climb("match", lambda: self._matched(options, folder / STATE, seed, places or {}, masks or {}))

    @property
    def metrics(self) -> dict[str, float]:
        return metrics_of(self.rungs)

    def _matched(self, options: Match, path: Path, seed: int, places: Places, masks: Masks) -> fx.GraphModule:
        current = self._current
        work = Matching(self.network, self._original, self._divergence, options, places, masks, current.group)
        made_for = {
            **asdict(options),
            "seed": seed,
            "data": current.data.fingerprint,
            "masks": weights_digest(masks),
            "weights": [weights_digest(network.state_dict()) for network in (self.network, self._original)],
        }
        if current.arguments.resume and path.exists():
            kept = torch.load(path, map_location=current.device, weights_only=True)
            if kept["made_for"] == made_for:
                work.load(kept["work"])

        def save(state: dict[str, Any]) -> None:
            if current.group.is_main:
                write_tensors(path, {"made_for": made_for, "work": state})

        group, train = current.group, current.data.train
        current.progress.start(f"{self._label}: match", options.steps)
        found = work.run(
            lambda epoch: train.batches(
                options.batch_size, current.device, seed=epoch_seed(seed, epoch), rank=group.rank, world=group.world,
                drop_last=len(train) >= options.batch_size,
            ),
            lambda: (inputs for inputs, _ in self._batches()),
            lambda step, least: current.progress.update(step, f"divergence {least:.4g}"),
            save,
        )  # fmt: skip
        current.progress.log(f"{self._label}: match, held-out divergence {work.found.told}")
        return found

    def _with_norms(self, samples: int) -> fx.GraphModule:
        network, current = copy.deepcopy(self.network), self._current
        batches = current.data.train.sample(samples).batches(current.recipe.moments.batch_size, current.device)
        estimate_norms(network, batches)
        return network

    def _loss(self, network: fx.GraphModule) -> float:
        return loss_of(network, self._original, (inputs for inputs, _ in self._batches()), self._divergence)

    def _batches(self) -> Any:
        return self._split.batches(self._current.recipe.moments.batch_size, self._current.device)


def ladder_table(title: str, ladders: Sequence[Sequence[Rung]]) -> Table:
    """A row for each rung of one ladder in several trials."""
    metrics = list(ladders[0][0].metrics)
    rows: list[tuple[Any, ...]] = []
    for same in zip(*ladders, strict=True):
        taken = sum(rung.taken for rung in same)
        told = "" if taken == len(same) else f"not taken in {len(same) - taken} of {len(same)}"
        values = [tuple(rung.metrics[name] for rung in same) for name in metrics]
        rows.append(
            (
                same[0].name,
                tuple(rung.divergence for rung in same),
                *values,
                tuple(round(rung.seconds, 1) for rung in same),
                told,
            )
        )
    return Table(title, ("", "held-out divergence", *(f"test {name}" for name in metrics), "seconds", "note"), rows)
