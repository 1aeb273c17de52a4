"""What `prune` found out, stage by stage: whole on disk after each step, so that a killed run goes on from there."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compresskit.commands.prune.choice import CHOSEN
from compresskit.commands.repair.ladder import Rung, metrics_of
from compresskit.commands.session import Session
from compresskit.passes.prune.budgets import Alone
from compresskit.storage.atomic import write_json
from compresskit.training.loop import History

PRUNED, STEP = "pruned.pt", "pruned.json"  # before retraining


@dataclass(frozen=True)
class PruneStep:
    """What one step did.

    asked, got, whole: of the target; whole is that of the network before the step, or without any masks. rungs: the
    net as it is cut or masked, and its repairs. groups: name, layers, channels (or weights, or kernels), kept.
    sensitivity: by group, what shares of it alone cost. difference: of the cut net from the whole one
    that does not see what is cut, on one batch. places: by layer, its outputs that are left, counted among those before
    the first step.
    """

    goal: str
    asked: float
    got: float
    whole: float
    rungs: list[Rung]
    groups: list[tuple[str, list[str], int, int]]
    skipped: dict[str, str]
    unrepaired: dict[str, str] = field(default_factory=dict)
    unexplained: dict[str, float] = field(default_factory=dict)
    difference: float = 0.0
    # by kind of channels, how many there were, are left
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    sensitivity: dict[str, list[Alone]] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)

    @property
    def cut(self) -> dict[str, float]:
        """Test metrics before any repair."""
        return self.rungs[0].metrics

    @property
    def repaired(self) -> dict[str, float]:
        """Test metrics with the best of the repairs."""
        return metrics_of(self.rungs)

    @property
    def plain(self) -> dict[str, Any]:
        """For report.json, where a number for each channel would be too much."""
        found = asdict(self) | {"cut": self.cut, "repaired": self.repaired}
        del found["places"]
        return found

    @staticmethod
    def read(folder: Path) -> "PruneStep":
        found = json.loads((folder / STEP).read_text())
        found["rungs"] = [Rung.of(rung) for rung in found["rungs"]]
        found["sensitivity"] = {name: [Alone(*one) for one in own] for name, own in found["sensitivity"].items()}
        return PruneStep(**found)

    def write(self, current: Session, folder: Path) -> None:
        """The last file of a step: only now is it done."""
        if current.group.is_main:
            write_json(folder / STEP, asdict(self) | {"rungs": [rung.plain for rung in self.rungs]})
            (folder / CHOSEN).unlink(missing_ok=True)
        current.group.barrier()


@dataclass(frozen=True)
class Retrained:
    """What followed a step: test metrics, and the training, without its best weights."""

    metrics: dict[str, float]
    history: History


def ratios(steps: Sequence[PruneStep]) -> dict[str, float]:
    """By group of layers, the share that went in all steps together."""
    return {name: 1 - left / whole for name, _, whole, left in changes(steps)}


def changes(steps: Sequence[PruneStep]) -> list[tuple[str, list[str], int, int]]:
    """Of each group in any of the steps, its layers, its size before the first of them and what the last one left."""
    found: dict[str, tuple[str, list[str], int, int]] = {}
    for step in steps:
        for name, layers, size, left in step.groups:
            found[name] = (name, layers, found[name][2] if name in found else size, left)
    return list(found.values())


def kinds(steps: Sequence[PruneStep]) -> dict[str, tuple[int, int]]:
    """By kind of channels, how many there were before all steps, and are left."""
    found: dict[str, tuple[int, int]] = {}
    for step in steps:
        for kind, (size, left) in step.kinds.items():
            found[kind] = (found[kind][0] if kind in found else size, left)
    return found
