"""Repairs of a compressed network, one above the other: each is judged on held-out images, and the best goes on."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx

from compresskit.commands.figures import said
from compresskit.commands.repair.fitting import Fits, Fitting
from compresskit.commands.result import Table
from compresskit.commands.session import Session
from compresskit.errors import ConvergenceError
from compresskit.graph.masks import Masks
from compresskit.graph.operations import NORMS
from compresskit.jobs.lanes import Counter
from compresskit.passes.repair.matching import Judging, Places
from compresskit.passes.repair.norms import estimate_norms


@dataclass(frozen=True)
class Rung:
    """name: of the repair. divergence: of the outputs from the original's, on held-out images. metrics: on the test
    set, which decides nothing. taken: whether it diverges less than all before it. told: what the repair says."""

    name: str
    divergence: float
    metrics: dict[str, float]
    seconds: float
    taken: bool
    told: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """For a file: null is what is not finite."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        divergence = self.divergence if math.isfinite(self.divergence) else None
        return asdict(self) | {"divergence": divergence, "metrics": metrics}

    @staticmethod
    def of(plain: dict[str, Any]) -> "Rung":
        divergence = math.inf if plain["divergence"] is None else plain["divergence"]
        metrics = {name: math.nan if value is None else value for name, value in plain["metrics"].items()}
        return Rung(**plain | {"divergence": divergence, "metrics": metrics})


def metrics_of(rungs: Sequence[Rung]) -> dict[str, float]:
    """Of the network that was taken, on the test set."""
    return next(rung.metrics for rung in reversed(rungs) if rung.taken)


class Ladder:
    """network: the best so far. original: what its outputs should be. judge: how far a network is from that."""

    def __init__(self, current: Session, original: fx.GraphModule, judge: Judging, label: str) -> None:
        self._current, self._original, self._judge, self._label = current, original, judge, label
        self.rungs: list[Rung] = []
        self.network = original

    def climb(
        self, name: str, work: Callable[[], fx.GraphModule], told: Callable[[], str] = str, since: float | None = None
    ) -> fx.GraphModule:
        """What comes of the work, which is taken where it diverges less than the best so far. told: what is to be said
        of it, asked behind it. since: `perf_counter` when the work began, where that was before."""
        began = time.perf_counter() if since is None else since
        network = work()
        seconds = time.perf_counter() - began
        divergence = self._current.group.share(self._judge(network))
        divergence = divergence if math.isfinite(divergence) else math.inf
        least = min((rung.divergence for rung in self.rungs), default=math.inf)
        taken = divergence < least or not self.rungs
        self.rungs.append(Rung(name, divergence, self._current.evaluate(network), seconds, taken, told()))
        if taken:
            self.network = network
        result = said(self.rungs[-1].metrics) + ("" if taken else ", no nearer to the original: not taken")
        self._current.progress.log(f"{self._label}: {name}, {result}")
        return network

    def layers(self, repair: str, norms: bool, samples: int, work: Callable[[], fx.GraphModule]) -> None:
        """Rungs for batch norms estimated again; for layers solved again, by the work of a `repair`; and for norms
        behind that, whether it was taken or not.

        Layers that cannot explain all of their old outputs give outputs of less variance. Norms make that up: it helps
        where much is lost, and where little is lost it makes errors larger.
        """
        if norms:
            self._norms("norms", self.network, samples)
        if repair != "none":
            solved = self.climb(repair, work)
            if norms:
                self._norms(f"norms behind {repair}", solved, samples)

    def _norms(self, name: str, network: fx.GraphModule, samples: int) -> None:
        """A rung for batch norms estimated again on so many training images, where there are any."""
        if any(isinstance(module, NORMS) and module.track_running_stats for module in network.modules()):
            self.climb(name, lambda: self._with_norms(network, samples))

    def fit(
        self, options: Fits, folder: Path, seed: int, places: Places | None = None, masks: Masks | None = None
    ) -> None:
        """Rungs for the weights of one block after another, and for all of them together, where they are asked for.

        folder: of what an interrupted run goes on from. places, masks: see `Matching`. Raises ConvergenceError where
        no rung gives finite outputs.
        """
        fitting = Fitting(self._current, self._original, folder, seed, self._label, places or {}, masks or {})
        if options.blocks is not None:
            blocks = options.blocks
            self.climb("blocks", lambda: fitting.blocks(self.network, blocks), lambda: fitting.told)
        if options.match is not None:
            match = options.match
            self.climb("match", lambda: fitting.match(self.network, match, self._judge), lambda: fitting.told)
        if not any(math.isfinite(rung.divergence) for rung in self.rungs):
            raise ConvergenceError(
                f"{self._label}: the outputs on held-out images are not finite, whatever was repaired; check the "
                "checkpoint and the data for NaN"
            )
        fitting.clear()

    @property
    def metrics(self) -> dict[str, float]:
        return metrics_of(self.rungs)

    def _with_norms(self, network: fx.GraphModule, samples: int) -> fx.GraphModule:
        network, current = copy.deepcopy(network), self._current
        split, size = current.data.train.sample(samples), current.recipe.moments.batch_size
        current.progress.start(f"{self._label}: norms, batches", -(-len(split) // size))
        estimate_norms(network, split.batches(size, current.device), Counter(current.progress))
        return network


def ladder_table(title: str, ladders: Sequence[Sequence[Rung]]) -> Table:
    """A row for each rung of one ladder in several trials, of which some may lack one."""
    metrics = list(ladders[0][0].metrics)
    names = dict.fromkeys(rung.name for rungs in sorted(ladders, key=len, reverse=True) for rung in rungs)
    rows: list[tuple[Any, ...]] = []
    for name in names:
        same = [rung for rungs in ladders for rung in rungs if rung.name == name]
        left = sum(not rung.taken for rung in same)
        told = (f"not taken in {left} of {len(same)}" if len(same) > 1 else "not taken") if left else same[0].told
        values = [tuple(rung.metrics[metric] for rung in same) for metric in metrics]
        seconds = tuple(round(rung.seconds, 1) for rung in same)
        rows.append((name, tuple(rung.divergence for rung in same), *values, seconds, told))
    return Table(title, ("", "held-out divergence", *(f"test {metric}" for metric in metrics), "seconds", "note"), rows)


def ladder_notes(current: Session, ladders: Sequence[Sequence[Rung]]) -> list[str]:
    """Repairs that were not taken, and what judged them where there was nothing better."""
    found = []
    for name in dict.fromkeys(rung.name for rungs in ladders for rung in rungs):
        same = [(rungs, place) for rungs in ladders for place, rung in enumerate(rungs) if rung.name == name]
        if lost := [(rungs, place) for rungs, place in same if not rungs[place].taken]:
            rungs, place = lost[0]
            before = min(rung.divergence for rung in rungs[:place])
            found.append(
                f"{name}: not taken in {len(lost)} of {len(same)} cases, for on held-out images its outputs were no "
                f"nearer to the original's (divergence {rungs[place].divergence:.4g} after {before:.4g})"
            )
    if current.data.validation is None and any(len(rungs) > 1 for rungs in ladders):
        found.append("repairs were judged on training images; set `data.validation` for images of their own")
    return found
