"""What `expand` reports: factors, the compact net against the expanded one, and the networks that it compares."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskit.commands.analyses import analyse
from compresskit.commands.expand.cost import add_costs
from compresskit.commands.expand.settings import Setting
from compresskit.commands.figures import Figures, compared, draw_sizes
from compresskit.commands.parents import MODEL
from compresskit.commands.result import Result, Table, by
from compresskit.commands.session import Session
from compresskit.commands.trials import BEST, best_trial
from compresskit.graph.counting import Counts
from compresskit.options import changed
from compresskit.passes.expand.network import Expansion
from compresskit.passes.expand.rates import StepCost
from compresskit.plots.training import training_curves
from compresskit.storage.checkpoint import load
from compresskit.training.loop import ON_TEST_SET, History
from compresskit.training.tasks.evaluation import shown_metrics

EXPANDED = "expanded.pt"


@dataclass
class ExpandedTrial:
    """One trial of one network. trained: figures of the net that was trained; final: of model.pt. best: test metrics.

    difference, differing: of the contracted net from the trained one on the test set; None if none was contracted.
    """

    seed: int
    path: Path
    expansion: Expansion | None
    history: History | None
    trained: Figures
    final: Figures
    best: dict[str, float] = field(default_factory=dict)
    difference: float | None = None
    differing: int | None = None
    reloaded: float = 0.0


def expand_result(
    current: Session, asked: Sequence[Setting], settings: Mapping[str, Sequence[ExpandedTrial]]
) -> Result:
    """settings: by name of all networks that were asked for, the recipe's own first, the trials that did not fail."""
    assert current.folder is not None
    own, settings = settings[asked[0].name], {name: found for name, found in settings.items() if found}
    first = next(iter(settings.values()))[0]
    result = Result("expand", current.recipe.name, current.folder.path)
    contracted = first.difference is not None
    before = [trial.trained for trial in own] if contracted else []
    if own:
        batch = current.recipe.report.latency_batch
        result.figures = compared(before, [trial.final for trial in own], batch, current.device)
        result.notes = _notes(current, own, contracted=contracted)
    if first.history is not None:
        result.tables.append(_networks(asked, settings))
    _add_factors(result, own[0].expansion if own else None)
    result.checks = _checks(settings)
    add_costs(result, costs_of({name: found[0].expansion for name, found in settings.items()}), _states(asked))
    result.details = {"networks": {name: [_plain(trial) for trial in found] for name, found in settings.items()}}
    if current.group.is_main:
        _finish(current, own, settings)
    if first.history is not None:
        histories = {name: [t.history for t in found if t.history] for name, found in settings.items()}
        analyse(current, result, histories, {name: found[0].path for name, found in settings.items()})
    return result


def plan_result(
    result: Result,
    asked: Sequence[Setting],
    expansions: Mapping[str, Expansion | None],
    networks: Mapping[str, Counts],
) -> Result:
    """The dry run's, with what would be expanded and how, and the networks that would be trained."""
    _add_factors(result, next(iter(expansions.values())))
    add_costs(result, costs_of(expansions), _states(asked))
    if len(networks) > 1:
        columns = ("network", "parameters in training", "MACs, factors one by one")
        rows: list[tuple[Any, ...]] = [(name, found.parameters, found.macs) for name, found in networks.items()]
        result.tables.append(_with_changes(Table("networks to train", columns, rows), asked))
    return result


def costs_of(expansions: Mapping[str, Expansion | None]) -> dict[str, StepCost]:
    """Of those networks that are expanded."""
    return {name: found.cost for name, found in expansions.items() if found is not None and found.cost is not None}


def _states(asked: Sequence[Setting]) -> dict[str, int]:
    return {one.name: one.training.optimizer.states if one.training else 0 for one in asked}


def _with_changes(table: Table, asked: Sequence[Setting]) -> Table:
    """With what is trained otherwise than `train` says, if anything is."""
    changes = {one.name: ", ".join(changed(one.training, asked[0].training)) if one.training else "" for one in asked}
    if not any(changes.values()):
        return table
    rows = [(*row, changes[row[0]]) for row in table.rows]
    return replace(table, columns=(*table.columns, "changes in training"), rows=rows)


def _add_factors(result: Result, expansion: Expansion | None) -> None:
    """A row for each expanded layer, and what was skipped."""
    if expansion is None:
        return
    columns: tuple[str, ...] = (
        "layer",
        "strategy",
        "rate",
        "weight",
        "factors",
        "parameters",
        "expanded",
        "MACs of the product",
    )
    rows: list[tuple[Any, ...]] = [
        (
            row.name,
            row.strategy,
            f"{row.rate:g}",
            by(row.weight_shape),
            " + ".join(" · ".join(map(by, branch)) for branch in row.factors),
            *row.parameters,
            row.product_macs,
        )
        for row in expansion.layers
    ]
    if any(row.residual is not None for row in expansion.layers):
        columns += ("product off by",)  # from the trained layer that it starts as
        rows = [(*row, f"{layer.residual:.1e}") for row, layer in zip(rows, expansion.layers, strict=True)]
    result.tables.append(Table("layers that were expanded, first factor first", columns, rows))
    result.skipped |= expansion.skipped


def _networks(asked: Sequence[Setting], settings: Mapping[str, Sequence[ExpandedTrial]]) -> Table:
    """A row for each network that was trained, one value a trial (Tables 1, 6 and 9 of the document)."""
    shown = shown_metrics(next(iter(settings.values()))[0].final.metrics)
    measured = [f"test {metric}, {epoch}" for metric in shown for epoch in ("last", "best epoch")]
    columns = ("network", *measured, "parameters in training", "MACs, factors one by one", "seconds an epoch")
    rows: list[tuple[Any, ...]] = []
    for name, trials in settings.items():
        seconds = [row["seconds"] for trial in trials if trial.history for row in trial.history.rows]
        figures = [(trial.final.metrics, trial.best) for trial in trials]
        rows.append(
            (
                name,
                *(tuple(both[epoch][metric] for both in figures) for metric in shown for epoch in (0, 1)),
                trials[0].trained.parameters,
                trials[0].trained.macs,
                statistics.median(seconds),
            )
        )
    return _with_changes(Table("networks trained", columns, rows), asked)


def _checks(settings: Mapping[str, Sequence[ExpandedTrial]]) -> dict[str, float]:
    trials = [trial for found in settings.values() for trial in found]
    checks = {"model.pt read back": max(trial.reloaded for trial in trials)}
    differences = [trial.difference for trial in trials if trial.difference is not None]
    if differences:
        checks = {"contracted net against the expanded one, relative": max(differences)} | checks
    return checks


def _notes(current: Session, trials: Sequence[ExpandedTrial], *, contracted: bool) -> list[str]:
    notes = []
    layers = trials[0].expansion.layers if trials[0].expansion else []
    if current.inputs and any(row.residual is None for row in layers):
        notes.append("factors were drawn afresh: what the checkpoint's expanded layers had learnt is not used")
    if contracted and current.data.task in ("classification", "segmentation"):
        differing = sum(trial.differing or 0 for trial in trials)
        notes.append(f"{differing} predictions on the test set differ between the contracted and the expanded net")
    if trials[0].history is not None and current.data.validation is None:
        notes.append(ON_TEST_SET)
    if current.recipe.trials > 1:
        best, monitor = _best(current, trials)
        notes.append(f"model.pt is that of seed {best.seed}, {monitor}")
    return notes


def _finish(current: Session, trials: Sequence[ExpandedTrial], settings: Mapping[str, Sequence[ExpandedTrial]]) -> None:
    """Copies the best of the own network's trials to the top of the run folder, and draws the curves."""
    assert current.folder is not None
    first = next(iter(settings.values()))[0].history
    trained = first is not None
    if trials and current.recipe.trials > 1:
        best, _ = _best(current, trials)
        files = [MODEL, *([BEST] if trained else []), *([EXPANDED] if best.difference is not None else [])]
        for name in files:
            current.folder.copy(best.path.with_name(name), name)
    if not current.recipe.report.plots:
        return
    if first is not None:
        curves = {
            name: [[row[first.monitor] for row in trial.history.rows] for trial in found if trial.history is not None]
            for name, found in settings.items()
        }
        training_curves(current.folder.path / "training-curves.png", {"": curves}, first.monitor.replace("_", " "))
    elif trials:
        network = load(current.folder.path / MODEL).network
        draw_sizes(current.folder.path, {"": network}, current.data.input_shape)


def _best(current: Session, trials: Sequence[ExpandedTrial]) -> tuple[ExpandedTrial, str]:
    """The trial whose nets go to the top of the run folder, and why it is this one."""
    histories = [trial.history for trial in trials if trial.history is not None]
    if not histories:
        return trials[0], "the first"
    return trials[best_trial(histories, current.data.task)], f"the best by {histories[0].monitor}"


def _plain(trial: ExpandedTrial) -> dict[str, Any]:
    return {
        "seed": trial.seed,
        "trained": asdict(trial.trained),
        "final": asdict(trial.final),
        "best": trial.best,
        "difference": trial.difference,
        "differing predictions": trial.differing,
        "layers": [asdict(row) for row in trial.expansion.layers] if trial.expansion else [],
        "rows": trial.history.rows if trial.history else [],
    }
