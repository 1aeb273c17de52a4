"""Other settings of `prune`, each pruned and retrained beside the one that is kept: a figure of a study in one run."""

import hashlib
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from compresskit.commands.analyses import Rows, draw_layers
from compresskit.commands.prune.section import MaskAndRetrain, PruneAndRetrain
from compresskit.commands.prune.stages import PruneStep, ratios
from compresskit.commands.result import Result, Table
from compresskit.commands.session import Session
from compresskit.errors import RecipeError
from compresskit.options import named
from compresskit.passes.prune.mask_options import OF_WEIGHTS
from compresskit.plots.comparison import comparison
from compresskit.plots.prune import ratios_by_setting
from compresskit.storage.run_folder import slug

Options = PruneAndRetrain | MaskAndRetrain
OF_RETRAINING = ("layerwise_rates", "distill")  # keys of `compare` that stand in the section `retrain`
_LONG = 120  # characters of a folder's name

Stage = Literal["cut", "repaired", "retrained"]


@dataclass(frozen=True)
class Setting:
    """One combination. at: of the target, as it was written. varied: by key of `compare`, what it stands for."""

    options: Options
    at: str
    varied: dict[str, str]

    @property
    def line(self) -> str:
        """The line of the plot that it lies on."""
        return ", ".join(self.varied.values()) or "as the section says"

    @property
    def folder(self) -> str:
        """Of its files, below the run's `compare`."""
        text = re.sub(r"[^a-zA-Z0-9.]+", "-", f"{self.at} {self.line}").strip("-")
        return text if len(text) < _LONG else f"{text[:_LONG]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Compared:
    """What became of a setting in one trial. retrained: metrics, None where it was not; rows: of its last epochs."""

    setting: Setting
    steps: list[PruneStep]
    retrained: dict[str, float] | None
    rows: Rows = ()

    def at(self, stage: Stage) -> dict[str, float]:
        """Metrics of a stage of the last step."""
        if stage == "retrained":
            assert self.retrained is not None
            return self.retrained
        return self.steps[-1].cut if stage == "cut" else self.steps[-1].repaired

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the last stage."""
        return self.at("repaired" if self.retrained is None else "retrained")

    @property
    def share(self) -> float:
        """Of the target's unit, what is left of the network that was pruned."""
        return self.steps[-1].got / self.steps[0].whole

    @property
    def ratios(self) -> dict[str, float]:
        """By group of layers, the share that went."""
        return ratios(self.steps)


def stages_of(options: Options, steps: Sequence[PruneStep]) -> dict[Stage, str]:
    """The stages of a step, and what tables call them; masks are repaired where there are norms to estimate."""
    stages: dict[Stage, str] = {"cut": "masked" if isinstance(options, MaskAndRetrain) else "cut"}
    rungs = {rung.name for step in steps for rung in step.rungs[1:]}
    if any(not name.startswith("norms") for name in rungs):
        stages["repaired"] = "repaired"
    elif rungs:
        stages["repaired"] = "norms estimated"
    return stages | ({"retrained": "fine-tuned"} if options.retrain is not None else {})


def settings(options: Options) -> list[Setting]:
    """Every combination of what `compare` names, in the order of the recipe."""
    compare = options.compare
    if compare is None:
        return []
    goal = options.target.goal
    keys = [key for key in asdict(compare) if key != "at" and getattr(compare, key)]
    found = []
    for *chosen, at in itertools.product(
        *(getattr(compare, key) for key in keys), compare.at or (getattr(options.target, goal),)
    ):
        changes: dict[str, Any] = dict(zip(keys, chosen, strict=True))
        varied = {key: _said(key, value) for key, value in changes.items()}
        training = {key: changes.pop(key) for key in OF_RETRAINING if key in changes}
        if training and options.retrain is not None:
            changes["retrain"] = replace(options.retrain, **training)
        changes |= {"target": type(options.target)(**{goal: at}), "compare": None}
        found.append(Setting(replace(options, **changes), f"{goal} {at}", varied))
    if twice := [name for name, times in Counter(setting.folder for setting in found).items() if times > 1]:
        raise RecipeError(f"prune.compare: {twice[0]} comes twice; name each value once")
    return found


def _said(key: str, value: Any) -> str:
    if key in ("blocks", "match"):
        return f"{key} {named(value)}".strip() if value else f"no {key}"
    if key == "distill":
        return f"distill {named(value)}" if value else "no teacher"
    if key == "layerwise_rates":
        if value is None or value.steers is None:
            return "one rate"
        return ", ".join(filter(None, [f"rates by {value.steers}", named(replace(value, metric=None, watch=()))]))
    return f"repair {value}" if isinstance(value, str) else named(value)


def add_comparison(current: Session, result: Result, trials: Sequence[list[Compared]], kind: str) -> None:
    """The table, and the plots: the metric by what is left, and what layers lost, for each line. trials: of each those
    settings that did not fail."""
    by_setting: dict[str, list[Compared]] = {}
    for one in (one for trial in trials for one in trial):
        by_setting.setdefault(one.setting.folder, []).append(one)
    several = list(map(tuple, by_setting.values()))
    metric = next(iter(several[0][0].metrics))
    result.tables.append(_table(several, metric))
    result.details["comparison"] = [
        [{"at": c.setting.at, **c.setting.varied, "metrics": c.metrics, "ratios": c.ratios} for c in trial]
        for trial in trials
    ]
    if not (current.group.is_main and current.recipe.report.plots and current.folder is not None):
        return
    lines: dict[str, list[tuple[float, float]]] = {}
    gone: dict[str, dict[str, dict[str, float]]] = {}
    for same in several:
        share = statistics.fmean(one.share for one in same)
        value = statistics.fmean(one.metrics[metric] for one in same)
        lines.setdefault(same[0].setting.line, []).append((share, value))
        gone.setdefault(same[0].setting.line, {})[same[0].setting.at] = same[0].ratios
    ordered = {line: sorted(points) for line, points in lines.items()}
    goal = several[0][0].setting.options.target.goal
    left = f"{'weights' if goal in OF_WEIGHTS else goal} left, % of the original"
    comparison(current.folder.path / "comparison.png", {f"test {metric}": ordered}, left)
    ratios_by_setting(current.folder.path / "comparison-ratios.png", gone, kind)
    _draw_layers(current.folder.path, several)


def _draw_layers(folder: Path, several: Sequence[tuple[Compared, ...]]) -> None:
    """What retraining watched, in plots of its own for each size: its lines are the settings of that size."""
    sizes: dict[str, list[tuple[Compared, ...]]] = {}
    for same in several:
        sizes.setdefault(same[0].setting.at, []).append(same)
    for at, found in sizes.items():
        retrains = [same[0].setting.options.retrain for same in found]
        asked = [retrain.layerwise_rates for retrain in retrains if retrain is not None]
        networks = {same[0].setting.line: [one.rows for one in same] for same in found}
        draw_layers(folder, networks, asked, f"-{slug(at)}" if len(sizes) > 1 else "")


def _table(several: Sequence[tuple[Compared, ...]], metric: str) -> Table:
    """A row for each setting, one value a trial."""
    found = [stages_of(same[0].setting.options, [step for one in same for step in one.steps]) for same in several]
    found.sort(key=lambda stages: stages.get("repaired") == "repaired")  # of several names the one that says most
    stages = {stage: name for stages in found for stage, name in stages.items()}
    stages = {stage: stages[stage] for stage in get_args(Stage) if stage in stages}
    columns = (
        *several[0][0].setting.varied,
        "asked",
        "left",
        *(f"test {metric}, {stage}" for stage in stages.values()),
    )
    rows: list[tuple[Any, ...]] = []
    for same in several:
        setting, left = same[0].setting, statistics.fmean(one.share for one in same)
        values = [tuple(one.at(stage)[metric] for one in same) for stage in stages]
        rows.append((*setting.varied.values(), setting.at, f"{left:.2%}", *values))
    return Table("comparison", columns, rows)
