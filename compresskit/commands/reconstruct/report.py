"""What `reconstruct` reports: stages, layers with their certificates, sizes, targets, and the comparison."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import fx

from compresskit.commands.figures import Figures, compared, slower
from compresskit.commands.parents import MODEL
from compresskit.commands.reconstruct import compare
from compresskit.commands.reconstruct.compare import Comparison, Images
from compresskit.commands.reconstruct.section import ReconstructAndRetrain
from compresskit.commands.reconstruct.sizes import Sizes
from compresskit.commands.repair.ladder import Rung, ladder_notes, ladder_table, metrics_of
from compresskit.commands.result import Figure, Result, Table, Target, by, tuples
from compresskit.commands.session import Session
from compresskit.commands.teacher import teacher_notes
from compresskit.graph.chains import weighted
from compresskit.passes.reconstruct.budget import SizeModel, goal_of
from compresskit.passes.reconstruct.network import ReconstructedLayer
from compresskit.passes.reconstruct.readers import Plan
from compresskit.passes.shares import share
from compresskit.plots.comparison import comparison
from compresskit.plots.reconstruct import trade_offs
from compresskit.training.tasks.evaluation import higher_is_better, shown_metrics


@dataclass(frozen=True)
class Outcome:
    """One reconstruction, before any retraining. rungs: the reconstructed net, and what became of it where weights were
    matched to the original's outputs. curves: by site, (kept, relative error).

    difference: largest one on a batch between the cut net and the one with zeros in place of what was cut.
    held_out_drop: points of accuracy lost on held-out images, where the target is one of these.
    """

    rungs: list[Rung]
    rows: list[ReconstructedLayer]
    curves: dict[str, tuple[list[int], list[float]]]
    notes: list[str]
    seconds: dict[str, float]
    difference: float
    held_out_drop: float | None = None

    @property
    def final(self) -> dict[str, float]:
        """Test metrics of the net that is kept."""
        return metrics_of(self.rungs)

    @property
    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"rungs": [rung.plain for rung in self.rungs]}

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        plain = json.loads(path.read_text())
        rows = [ReconstructedLayer(**{name: tuples(value) for name, value in row.items()}) for row in plain.pop("rows")]
        rungs = [Rung.of(rung) for rung in plain.pop("rungs")]
        return cls(rows=rows, rungs=rungs, **plain)


@dataclass
class ReconstructedTrial:
    """sizes: before and after. monitored: metrics of the final net on the validation split, if there is one."""

    seed: int
    path: Path
    before: Figures
    outcome: Outcome
    retrained: dict[str, float] | None
    after: Figures | None = None
    sizes: tuple[Sizes, Sizes] | None = None
    reloaded: float = 0.0
    monitored: dict[str, float] | None = None
    compared: Comparison = field(default_factory=Comparison)

    @property
    def final(self) -> dict[str, float]:
        return self.retrained or self.outcome.final


def reconstruct_result(
    current: Session,
    options: ReconstructAndRetrain,
    made: Plan,
    trials: list[ReconstructedTrial],
    comparisons: list[Comparison],
) -> Result:
    """trials: those that did not fail. comparisons: of every trial, with the points that did not; raises what stopped
    the first job where all did."""
    points = [point for one in comparisons for point in one.points]
    if not trials and not points:
        raise next(iter(current.failed.values()))
    assert current.folder is not None
    result = Result("reconstruct", current.recipe.name, current.folder.path, skipped=made.skipped)
    if trials:
        _add_own(current, result, options, trials)
    if points:
        result.tables.append(compare.table(comparisons))
        result.notes += comparisons[0].impossible
        if current.group.is_main and current.recipe.report.plots:
            panels = {
                f"{images} {next(iter(points[0].metrics))}": compare.lines(comparisons, images)
                for images in get_args(Images)
            }
            grid = options.compare is not None and bool(options.compare.grid)
            comparison(current.folder.path / "comparison.png", panels, joined=not grid)
    return result


def _add_own(
    current: Session, result: Result, options: ReconstructAndRetrain, trials: list[ReconstructedTrial]
) -> None:
    """What there is to say of the networks that are kept."""
    first = trials[0]
    metric = next(iter(first.before.metrics))
    result.figures = _figures(current, trials)
    result.tables = [_stages(trials), _layers(trials)]
    if len(first.outcome.rungs) > 1:
        result.tables.insert(1, ladder_table("repairs", [trial.outcome.rungs for trial in trials]))
    result.targets = _targets(options, trials)
    result.checks = {
        "cut net against the one with zeros": max(trial.outcome.difference for trial in trials),
        "model.pt read back": max(trial.reloaded for trial in trials),
    }
    notes = [note for trial in trials for note in trial.outcome.notes]
    result.notes = list(dict.fromkeys([*notes, *slower(result.figures)]))
    if first.sizes is not None and first.sizes[1].selections:
        bits = 8 * first.sizes[1].selections
        result.notes.append(f"{bits:,.0f} bits say which inputs are selected (log2 of the binomials): part of the size")
    if current.data.validation is None and options.target is not None:
        result.notes.append("a target was judged on training images; set `data.validation` for images of its own")
    result.notes += teacher_notes(options.retrain)
    result.notes += ladder_notes(current, [trial.outcome.rungs for trial in trials])
    result.details = {"trials": [_plain(trial) for trial in trials]}
    if current.group.is_main:
        _finish(current, result, trials, metric)


def plan_result(current: Session, network: fx.GraphModule, options: ReconstructAndRetrain, made: Plan) -> Result:
    """The dry run: what would be thinned, what its moments take, and the least that can be left."""
    result = Result("reconstruct", f"{current.recipe.name} (dry run)", skipped=made.skipped)
    columns = ("layer", "chosen with", "inputs", "unit", "sampler", "weight", "moments")
    rows: list[tuple[Any, ...]] = [
        (
            reader.layer,
            ", ".join(other.layer for other in site.readers if other is not reader),
            site.n_groups,
            site.unit,
            "dynamic" if site.dynamic else "static",
            by(tuple(weighted(network, reader.layer).weight.shape)),
            f"{reader.request.nbytes / 1e6:.1f} MB",
        )
        for site in made.sites
        for reader in site.readers
    ]
    result.tables = [Table("layers to thin", columns, rows)]
    goal = (goal_of(options.target) if options.target is not None else None) or "size"
    model = SizeModel(network, made, current.data.input_shape, centred=options.centred)
    smallest = model.smallest(goal, options.min_channels)
    result.notes = [f"with min_channels left everywhere, {smallest:.1%} of the {goal} remain", "nothing was written"]
    if goal == "size":
        whole = float(model.cost("size")(model.full)) / 8
        told = f"the network takes {whole:,.0f} bytes at 32 bits a number"
        if options.target is not None and options.target.size is not None:
            told += f"; {options.target.size} of it are {int(share(options.target.size) * whole):,}"
        result.notes.insert(0, told)
    return result


def _figures(current: Session, trials: list[ReconstructedTrial]) -> list[Figure]:
    after = [trial.after for trial in trials if trial.after is not None]
    pairs = [trial.sizes for trial in trials if trial.sizes is not None]
    rows = compared([t.before for t in trials], after, current.recipe.report.latency_batch, current.device)
    for name, key in (("size, 32 bits a number", "raw"), ("size, sparse rows", "csr")):
        before, now = (tuple(getattr(side, key) for side in column) for column in zip(*pairs, strict=True))
        rows.append(Figure(name, before, now, "bytes"))
    return rows


def _stages(trials: list[ReconstructedTrial]) -> Table:
    stages = {
        "original": [trial.before.metrics for trial in trials],
        "reconstructed": [trial.outcome.rungs[0].metrics for trial in trials],
        "fitted": [trial.outcome.final for trial in trials if len(trial.outcome.rungs) > 1],
        "retrained": [trial.retrained for trial in trials if trial.retrained is not None],
    }
    shown = shown_metrics(trials[0].before.metrics)
    rows = [
        (stage, *(tuple(one[metric] for one in found) for metric in shown)) for stage, found in stages.items() if found
    ]
    return Table("stages", ("", *(f"test {metric}" for metric in shown)), rows)


def _layers(trials: list[ReconstructedTrial]) -> Table:
    """One row a layer. What differs among trials is their mean and deviation."""
    columns = (
        "layer",
        "kept",
        "of",
        "unit",
        "sampler",
        "weight",
        "asked",
        "unexplained",
        "rank",
        "lambda",
        "gap",
        "by",
    )
    rows: list[tuple[Any, ...]] = []
    for several in zip(*(trial.outcome.rows for trial in trials), strict=True):
        row = several[0]
        shape = f"{by(row.weight_shape_before)} → {by(row.weight_shape)}"
        factors = f", rank {row.low_rank}" if row.low_rank else ""
        kept = row.kept if len({r.kept for r in several}) == 1 else tuple(float(r.kept) for r in several)
        rows.append(
            (
                *(row.name, kept, row.inputs, row.unit, row.sampler, f"{shape}{factors}", row.asked),
                tuple(r.unexplained for r in several),
                "" if row.rank is None else row.rank,
                "" if row.lam is None else f"{row.lam:.4g}",
                "" if row.gap is None else f"{max(r.gap or 0.0 for r in several):.1e}",
                f"{row.selection}{', ' + row.solver if row.solver else ''}",
            )
        )
    return Table("layers: unexplained share of the output's variance, on the images of the moments", columns, rows)


def _targets(options: ReconstructAndRetrain, trials: list[ReconstructedTrial]) -> list[Target]:
    target = options.target
    if target is None:
        return []
    goal = goal_of(target)
    if goal is None:
        drop = max(t.outcome.held_out_drop or 0.0 for t in trials)
        asked = target.accuracy_drop or 0.0
        said = f"{drop:.2f} points on held-out images"
        return [Target("accuracy_drop", f"{asked:g} points", said, drop <= asked + 1e-9)]
    text = getattr(target, goal)
    pairs: dict[str, list[tuple[float, float]]] = {
        "size": [(t.sizes[0].raw, t.sizes[1].raw) for t in trials if t.sizes],
        "params": [(t.before.parameters, t.after.parameters) for t in trials if t.after],
        "macs": [(t.before.macs, t.after.macs) for t in trials if t.after],
    }
    got = max(after / before for before, after in pairs[goal])
    return [Target(goal, text, f"{got:.2%}", got <= share(text) * (1 + 1e-9))]


def _finish(current: Session, result: Result, trials: list[ReconstructedTrial], metric: str) -> None:
    """The best trial's net at the top of the folder, and the trade-offs."""
    assert current.folder is not None
    if current.recipe.trials > 1:
        pick = max if higher_is_better(current.data.task, metric) else min
        best = pick(trials, key=lambda trial: (trial.monitored or trial.final)[metric])
        current.folder.copy(best.path, MODEL)
        split = "test" if trials[0].monitored is None else "validation"
        result.notes.append(f"model.pt is that of seed {best.seed}, the best by {split} {metric}")
    if current.recipe.report.plots:
        outcome = trials[0].outcome
        chosen = {row.site: (row.kept, row.unexplained) for row in outcome.rows}
        trade_offs(current.folder.path / "trade-off.png", outcome.curves, chosen)


def _plain(trial: ReconstructedTrial) -> dict[str, Any]:
    outcome = trial.outcome
    return {
        "seed": trial.seed,
        "reconstructed": outcome.rungs[0].metrics,
        "rungs": [vars(rung) for rung in outcome.rungs],
        "retrained": trial.retrained,
        "layers": [vars(row) | {"unexplained": row.unexplained} for row in outcome.rows],
        "curves": {name: {"kept": kept, "errors": errors} for name, (kept, errors) in outcome.curves.items()},
        "seconds": outcome.seconds,
        "comparison": [vars(point) for point in trial.compared.points],
    }
