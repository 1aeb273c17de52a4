"""What is known of each step of `fuse`, as it is kept in a run folder and told in the report."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import fx

from compresskit.commands.figures import Figures
from compresskit.commands.result import tuples
from compresskit.passes.fuse.auto import Size
from compresskit.passes.fuse.network import FusedLayer


@dataclass
class Baseline:
    """A network of the same layers, trained from random weights: test metrics, and the monitored one by epoch."""

    epochs: int
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)


@dataclass
class Step:
    """One fused chain: its row, the network's widths and multiply-adds, and the test metrics before and after training.

    curve: the column `monitor` of the training by epoch, first before any. epochs: that the fused net had in all, with
    those of the net it came from; None where nothing tells these. monitored: its main metric on the validation split,
    if there is one. baselines: by their name in the recipe. not_random: parameters that a baseline shares with the
    fused net, since no layer draws them.
    """

    seed: int
    row: FusedLayer
    widths: str
    macs: int
    fused: dict[str, float]
    retrained: dict[str, float] | None = None
    monitor: str = ""
    curve: list[float] = field(default_factory=list)
    epochs: int | None = None
    monitored: float | None = None
    baselines: dict[str, Baseline] = field(default_factory=dict)
    not_random: list[str] = field(default_factory=list)

    @property
    def main(self) -> str:
        """Name of the task's main metric."""
        return next(iter(self.fused))

    @property
    def final(self) -> dict[str, float]:
        return self.retrained or self.fused

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ranking:
    """What `layers: auto` had to choose from: the rows of its table, and what was left alone with the reason."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class FusedTrial:
    """All steps of one trial. path: of its final checkpoint; start: of the net that was fused, trained for `epochs`;
    ranking: the first one of `layers: auto`."""

    seed: int
    network: fx.GraphModule
    before: Figures
    path: Path
    start: Path
    epochs: int | None
    steps: list[Step] = field(default_factory=list)
    ranking: Ranking = Ranking()
    after: Figures | None = None
    reloaded: float = 0.0
    size: tuple[Size, Size] | None = None


def read_step(path: Path) -> Step:
    """A step that an interrupted run had finished."""
    plain = json.loads(path.read_text())
    row = {name: tuples(value) for name, value in plain.pop("row").items()}
    baselines = {name: Baseline(**found) for name, found in plain.pop("baselines").items()}
    return Step(row=FusedLayer(**row), baselines=baselines, **plain)
