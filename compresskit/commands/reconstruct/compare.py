"""Other settings of `reconstruct`, each evaluated without retraining: the document's Figures 5 and 6."""

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskit.commands.reconstruct.section import ReconstructAndRetrain
from compresskit.commands.result import Table
from compresskit.passes.reconstruct.network import Reconstruction
from compresskit.passes.reconstruct.options import Backward, GroupLasso, Reconstruct, Target


@dataclass(frozen=True)
class Point:
    """One setting: what was asked, its share of the raw size, its test metrics, what layers keep and lose."""

    selection: str
    chaining: str
    debias: bool
    asked: str
    size: float
    metrics: dict[str, float]
    kept: dict[str, int]
    unexplained: dict[str, float]

    @property
    def line(self) -> str:
        """The line of the plot that it lies on."""
        return f"{self.selection}, {self.chaining}{'' if self.debias else ', not debiased'}"


@dataclass
class Comparison:
    """impossible: combinations that contradict themselves, with the reason."""

    points: list[Point] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """What an interrupted run had of it."""
        plain = json.loads(path.read_text()) if path.exists() else {"points": []}
        return cls([Point(**point) for point in plain["points"]])

    def add(
        self, setting: ReconstructAndRetrain, metrics: dict[str, float], found: Reconstruction, size: float
    ) -> None:
        kept = {row.name: row.kept for row in found.rows}
        unexplained = {row.name: row.unexplained for row in found.rows}
        chosen = setting.chosen_selection.kind
        point = Point(chosen, setting.chaining, setting.debias, _asked(setting), size, metrics, kept, unexplained)
        self.points.append(point)


def table(trials: Sequence[Comparison]) -> Table:
    """A row for each setting, one value a trial."""
    metric = next(iter(trials[0].points[0].metrics))
    columns = ("selection", "chaining", "debiased", "asked", "size", f"test {metric}", "kept")
    rows: list[tuple[Any, ...]] = []
    for several in _by_setting(trials):
        first = several[0]
        values = tuple(point.metrics[metric] for point in several)
        size = f"{statistics.fmean(point.size for point in several):.1%}"
        rows.append((first.selection, first.chaining, first.debias, first.asked, size, values, _widths(first.kept)))
    return Table("comparison, without factors and retraining; what layers keep is the first trial's", columns, rows)


def lines(trials: Sequence[Comparison]) -> dict[str, list[tuple[float, float]]]:
    """(share of the size, main test metric), means over trials, of the points on each line of the plot."""
    found: dict[str, list[tuple[float, float]]] = {}
    for several in _by_setting(trials):
        size = statistics.fmean(point.size for point in several)
        metric = statistics.fmean(next(iter(point.metrics.values())) for point in several)
        found.setdefault(several[0].line, []).append((size, metric))
    return {name: sorted(points) for name, points in found.items()}


def _by_setting(trials: Sequence[Comparison]) -> list[tuple[Point, ...]]:
    return list(zip(*(trial.points for trial in trials), strict=True))


def combinations(options: ReconstructAndRetrain) -> tuple[list[ReconstructAndRetrain], list[str]]:
    """Every combination of what `compare` names, and those that are none, with the reason."""
    compare = options.compare
    if compare is None:
        return [], []
    kinds = {"backward": Backward(), "group-lasso": _group_lasso(options)}
    found, impossible = [], []
    for name, chaining, debias, at in itertools.product(
        compare.selection or (options.chosen_selection.kind,),
        compare.chaining or (options.chaining,),
        compare.debias or (options.debias,),
        compare.at or (None,),
    ):
        try:
            changes = _amount(options, at) | {"selection": kinds[name], "chaining": chaining, "debias": debias}
            changes["low_rank"] = None  # which would blur what the selections differ in
            found.append(replace(options, **changes))
        except ValueError as error:
            impossible.append(f"left out of the comparison: {name}, debias {str(debias).lower()} ({error})")
    return found, list(dict.fromkeys(impossible))


def _group_lasso(options: Reconstruct) -> GroupLasso:
    return options.selection if isinstance(options.selection, GroupLasso) else GroupLasso()


def _amount(options: ReconstructAndRetrain, at: float | str | None) -> dict[str, Any]:
    """The key that says how much is kept, with another value."""
    name = options.amount
    if at is None:
        return {}
    if options.target is not None:
        changes: dict[str, Any] = {name: at}
        return {"target": Target(**changes)}
    before = getattr(options, name)
    value = int(at) if name == "keep" and not isinstance(at, str) else at
    return {name: dict.fromkeys(before, value) if isinstance(before, dict) else value}


def _asked(options: ReconstructAndRetrain) -> str:
    name = options.amount
    value = getattr(options.target or options, name)
    text = ", ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, dict) else value
    return f"{name} {text}"


def _widths(kept: dict[str, int]) -> str:
    return "-".join(map(str, kept.values()))
