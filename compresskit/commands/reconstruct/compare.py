"""Other settings of `reconstruct`, each evaluated without retraining: the document's Figures 5 and 6."""

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compresskit.commands.reconstruct.section import Compare, ReconstructAndRetrain
from compresskit.commands.result import Table
from compresskit.passes.reconstruct.network import Reconstruction
from compresskit.passes.reconstruct.options import Backward, GroupLasso, Reconstruct, Target
from compresskit.storage.run_folder import slug
from compresskit.training.tasks.evaluation import shown_metrics

SPARSE_ROWS = "largest weights, sparse rows"
Images = Literal["test", "training"]  # that a metric was measured on


@dataclass(frozen=True)
class Point:
    """One setting: what was asked, its share of the raw size, its metrics on test images and on as many training ones,
    what layers keep and lose."""

    selection: str
    chaining: str
    debias: bool
    asked: str
    size: float
    metrics: dict[str, float]
    training: dict[str, float]
    kept: dict[str, int]
    unexplained: dict[str, float]

    @property
    def line(self) -> str:
        """The line of the plot that it lies on."""
        if self.selection == SPARSE_ROWS:
            return self.selection
        return f"{self.selection}, {self.chaining}{'' if self.debias else ', not debiased'}"


@dataclass(frozen=True)
class Part:
    """Settings that go one after another, since they have trade-offs in common; or sizes of sparse rows alone.

    name: of its folder.
    """

    name: str
    settings: tuple[ReconstructAndRetrain, ...]
    sparse_rows: tuple[str, ...] = ()


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
        self,
        setting: ReconstructAndRetrain,
        metrics: dict[str, float],
        training: dict[str, float],
        found: Reconstruction,
        size: float,
    ) -> None:
        kept = {row.name: row.kept for row in found.rows}
        unexplained = {row.name: row.unexplained for row in found.rows}
        chosen = setting.chosen_selection.kind
        how = (chosen, setting.chaining, setting.debias, _asked(setting))
        self.points.append(Point(*how, size, metrics, training, kept, unexplained))


def parts(options: ReconstructAndRetrain) -> list[Part]:
    """What `compare` names, in its order. A target is shared out by trade-offs, which depend on the selection alone;
    without one no setting has any in common with another line of the plot."""
    settings, _ = combinations(options)
    found: dict[str, list[ReconstructAndRetrain]] = {}
    for setting in settings:
        chosen = setting.chosen_selection.kind
        line = f"{chosen} {setting.chaining}{'' if setting.debias else ' not debiased'}"
        found.setdefault(slug(line if options.target is None else chosen), []).append(setting)
    rivals = [Part("sparse-rows", (), tuple(at))] if (at := rivals_at(settings)) else []
    return [Part(name, tuple(several)) for name, several in found.items()] + rivals


def rivals_at(settings: Sequence[ReconstructAndRetrain]) -> list[str]:
    """The sizes at which sparse rows are asked for, each once."""
    asked = [
        s.target.size for s in settings if s.compare is not None and s.compare.sparse_rows and s.target is not None
    ]
    return list(dict.fromkeys(size for size in asked if isinstance(size, str)))


def table(trials: Sequence[Comparison]) -> Table:
    """A row for each setting, one value a trial."""
    several_of = _by_setting(trials)
    shown = shown_metrics(several_of[0][0].metrics)
    measured = (*(f"test {metric}" for metric in shown), f"training {shown[0]}")
    columns = ("selection", "chaining", "debiased", "asked", "size", *measured, "kept")
    rows: list[tuple[Any, ...]] = []
    for several in several_of:
        first = several[0]
        values = [tuple(point.metrics[metric] for point in several) for metric in shown]
        values.append(tuple(point.training[shown[0]] for point in several))
        size = f"{statistics.fmean(point.size for point in several):.1%}"
        rows.append((first.selection, first.chaining, first.debias, first.asked, size, *values, _widths(first.kept)))
    return Table("comparison, without factors and retraining; what layers keep is the first trial's", columns, rows)


def lines(trials: Sequence[Comparison], images: Images) -> dict[str, list[tuple[float, float]]]:
    """(share of the size, main metric), means over trials, of the points on each line of the plot."""
    found: dict[str, list[tuple[float, float]]] = {}
    for several in _by_setting(trials):
        size = statistics.fmean(point.size for point in several)
        metrics = [point.metrics if images == "test" else point.training for point in several]
        metric = statistics.fmean(next(iter(found.values())) for found in metrics)
        found.setdefault(several[0].line, []).append((size, metric))
    return {name: sorted(points) for name, points in found.items()}


def _by_setting(trials: Sequence[Comparison]) -> list[list[Point]]:
    """Of each setting the points of those trials that have it."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in (point for trial in trials for point in trial.points):
        found.setdefault((point.line, point.asked), []).append(point)
    return list(found.values())


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
        _amounts(compare),
    ):
        try:
            changes = _amount(options, at) | {"selection": kinds[name], "chaining": chaining, "debias": debias}
            changes["low_rank"] = None  # which would blur what the selections differ in
            found.append(replace(options, **changes))
        except ValueError as error:
            impossible.append(f"left out of the comparison: {name}, debias {str(debias).lower()} ({error})")
    return found, list(dict.fromkeys(impossible))


def _amounts(compare: Compare) -> Sequence[float | str | dict[str, float | str] | None]:
    """One after another, those of `at`, or of each point of the grid, by selector."""
    if compare.grid:
        return [dict(zip(compare.grid, amounts, strict=True)) for amounts in itertools.product(*compare.grid.values())]
    return compare.at or (None,)


def _group_lasso(options: Reconstruct) -> GroupLasso:
    return options.selection if isinstance(options.selection, GroupLasso) else GroupLasso()


def _amount(options: ReconstructAndRetrain, at: float | str | dict[str, float | str] | None) -> dict[str, Any]:
    """The key that says how much is kept, with another value."""
    name = options.amount
    if at is None:
        return {}
    if isinstance(at, dict):
        return {name: {selector: _whole(name, amount) for selector, amount in at.items()}}
    if options.target is not None:
        changes: dict[str, Any] = {name: at}
        return {"target": Target(**changes)}
    before, value = getattr(options, name), _whole(name, at)
    return {name: dict.fromkeys(before, value) if isinstance(before, dict) else value}


def _whole(name: str, amount: float | str) -> float | str:
    return int(amount) if name == "keep" and not isinstance(amount, str) else amount


def _asked(options: ReconstructAndRetrain) -> str:
    name = options.amount
    value = getattr(options.target or options, name)
    text = ", ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, dict) else value
    return f"{name} {text}"


def _widths(kept: dict[str, int]) -> str:
    return "-".join(map(str, kept.values()))
