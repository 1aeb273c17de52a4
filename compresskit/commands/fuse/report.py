"""What `fuse` reports: the fused networks beside the document's tables, each layer's error, and the candidates."""

import csv
import math
from pathlib import Path
from typing import Any

from torch import fx

from compresskit.commands.figures import compared, draw_sizes, slower
from compresskit.commands.fuse.records import Baseline, FusedTrial, Step
from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.commands.parents import MODEL
from compresskit.commands.result import Result, Table, Target, by
from compresskit.commands.session import Session
from compresskit.commands.teacher import teacher_notes
from compresskit.graph.chains import WEIGHTED
from compresskit.passes.fuse.auto import Candidate, unmet
from compresskit.passes.fuse.fusible import Fusible
from compresskit.plots.fuse import candidates, learning_curves
from compresskit.storage.checkpoint import load
from compresskit.training.tasks.evaluation import higher_is_better

_FROM = {"random": "from random", "whole": "from random, whole training"}  # baselines, as tables name them


def fuse_result(current: Session, options: FuseAndRetrain, trials: list[FusedTrial]) -> Result:
    assert current.folder is not None
    metric = next(iter(trials[0].before.metrics))
    result = Result("fuse", current.recipe.name, current.folder.path, skipped=trials[0].ranking.skipped)
    after = [trial.after for trial in trials if trial.after is not None]
    batch = current.recipe.report.latency_batch
    result.figures = compared([trial.before for trial in trials], after, batch, current.device)
    result.notes = [*slower(result.figures), *_worse_than_constants(trials, options), *teacher_notes(options.retrain)]
    result.tables = [_networks(trials, metric), *_training(trials), _layers(trials)]
    if trials[0].ranking.rows:
        result.tables.append(candidate_table(trials[0].ranking.rows))
    not_random = sorted({name for trial in trials for step in trial.steps for name in step.not_random})
    if not_random:
        result.notes.append(f"the random baseline keeps what no layer draws: {', '.join(not_random)}")
    result.targets = _targets(options, trials)
    result.checks = {"model.pt read back": max(trial.reloaded for trial in trials)}
    result.details = {"trials": [{"seed": t.seed, "steps": [s.plain() for s in t.steps]} for t in trials]}
    if current.group.is_main:
        best = _best(trials, current.data.task, metric)
        if current.recipe.trials > 1:
            current.folder.copy(best.path, MODEL)
            split = "test" if current.data.validation is None else "validation"
            result.notes.append(f"model.pt is that of seed {best.seed}, the best by {split} {metric}")
        if current.recipe.report.plots:
            result.notes += _plot(current.folder.path, trials)
            networks = {"before": trials[0].network, "after": load(trials[0].path).network}
            draw_sizes(current.folder.path, networks, current.data.input_shape)
    return result


def plan_result(
    current: Session,
    network: fx.GraphModule,
    planned: list[Fusible] | list[Candidate],
    skipped: dict[str, str],
    cost: list[str],
) -> Result:
    """The dry run: what would be fused, or the candidates that `auto` would choose from. cost: of the moments."""
    notes = ["nothing was written", *cost]
    result = Result("fuse", f"{current.recipe.name} (dry run)", skipped=skipped, notes=notes)
    fusibles = [entry for entry in planned if isinstance(entry, Fusible)]
    ranked = [entry for entry in planned if isinstance(entry, Candidate)]
    if fusibles:
        columns = ("chain", "fused weight", "parameters saved", "MACs saved", "moments")
        rows = [
            (str(f.chain), by(f.weight_shape), f.saved_params, f.saved_macs, f"{f.request.nbytes / 1e6:.1f} MB")
            for f in fusibles
        ]
        result.tables = [Table(f"chains of {widths(network)}", columns, rows)]
    if ranked:
        result.tables = [candidate_table(candidate_rows(ranked))]
    return result


def candidate_table(rows: list[tuple[Any, ...]]) -> Table:
    """Every chain that `auto` considers, the best explained first."""
    columns = ("candidate", "fused weight", "expected error", "unexplained", "rank", "parameters saved", "MACs saved")
    return Table("candidates", columns, rows)


def candidate_rows(ranked: list[Candidate]) -> list[tuple[Any, ...]]:
    return [
        (
            str(c.fusible.chain),
            by(c.fusible.weight_shape),
            c.fusion.expected_error,
            c.fusion.unexplained,
            _rank(c.fusion.rank, c.fusible.request.features),
            c.fusible.saved_params,
            c.fusible.saved_macs,
        )
        for c in ranked
    ]


def widths(network: fx.GraphModule) -> str:
    """Output sizes of all weighted layers but the last, as the document names its nets: 2-4-8-16."""
    sizes = [module.weight.shape[0] for _, module in network.named_modules() if isinstance(module, WEIGHTED)]
    return "-".join(map(str, sizes[:-1])) or str(sizes[-1])


def _networks(trials: list[FusedTrial], metric: str) -> Table:
    names = _baselines(trials)
    original = tuple(trial.before.metrics[metric] for trial in trials)  # which is trained, and not fused
    rows: list[tuple[Any, ...]] = [(widths(trials[0].network), "", original, *[""] * len(names), "")]
    for found in _by_step(trials).values():
        step = found[0]
        rows.append(
            (
                step.widths,
                tuple(s.fused[metric] for s in found),
                tuple(s.retrained[metric] for s in found if s.retrained) or "",
                *(tuple(b.metrics[metric] for b in _beside(found, name)) or "failed" for name in names),
                step.row.saved_macs,
            )
        )
    columns = ("network", f"{metric}, fused", f"{metric}, trained", *(f"{metric}, {_FROM[n]}" for n in names))
    return Table("networks", (*columns, "MACs saved"), rows)


def _training(trials: list[FusedTrial]) -> list[Table]:
    """What training each network has cost, with all that went before it; none where nothing tells that."""
    first, names = trials[0], _baselines(trials)
    if not names or any(trial.epochs is None for trial in trials):
        return []
    epochs, paid = first.epochs or 0, float(first.epochs or 0)
    rows: list[tuple[Any, ...]] = [(widths(first.network), epochs, paid, *[""] * (2 * len(names)))]
    for step in first.steps:
        share = step.macs / first.before.macs
        paid += ((step.epochs or 0) - epochs) * share
        epochs = step.epochs or 0
        found = [step.baselines.get(name) for name in names]
        beside = [(one.epochs, one.epochs * share) if one is not None else ("failed", "") for one in found]
        rows.append((step.widths, epochs, paid, *(cell for pair in beside for cell in pair)))
    columns = [f"{who}, {what}" for who in ("fused", *(_FROM[n] for n in names)) for what in ("epochs in all", "cost")]
    title = "training, first trial; cost in epochs of the net that was fused, by multiply-adds"
    return [Table(title, ("network", *columns), rows)]


def _baselines(trials: list[FusedTrial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for step in trial.steps for name in step.baselines))


def _beside(steps: list[Step], name: str) -> list[Baseline]:
    """Those of that name that did not fail."""
    return [step.baselines[name] for step in steps if name in step.baselines]


def _layers(trials: list[FusedTrial]) -> Table:
    columns = (
        "fused",
        "weights",
        "rank",
        "ridge",
        "solver",
        "Corollary 1",
        "expected",
        "measured",
        "unexplained",
        "measured share",
    )
    rows = []
    for found in _by_step(trials).values():
        row = found[0].row
        shapes = f"{' + '.join(map(by, row.weight_shapes))} → {by(row.weight_shape)}"
        values = zip(
            *(
                (s.row.error, s.row.expected_error, s.row.measured_error, s.row.unexplained, s.row.measured_unexplained)
                for s in found
            ),
            strict=True,
        )
        rows.append((" + ".join(row.layers), shapes, _rank(row.rank, row.features), row.ridge, row.solver, *values))
    return Table(
        "fused layers: mean squared error by Corollary 1, expected on new images, measured on held-out ones",
        columns,
        rows,
    )


def _worse_than_constants(trials: list[FusedTrial], options: FuseAndRetrain) -> list[str]:
    """Notes on fused layers that stand in no better than the mean of the outputs would."""
    notes = []
    for found in _by_step(trials).values():
        row = found[0].row
        expected = max(step.row.unexplained for step in found)
        measured = max(step.row.measured_unexplained or 0.0 for step in found)
        if max(expected, measured) >= 1:
            apart = options.channels != "joint" and len(row.weight_shape) > 2  # of a linear layer they never are
            joint = "`channels: joint`, " if apart else ""
            shares = f"{_number(expected)} expected, {_number(measured)} measured"
            notes.append(
                f"{' + '.join(row.layers)}: the fused layer is no better than a constant (share of variance that it "
                f"misses: {shares}; {row.count:,} samples for {row.features:,} inputs): take {joint}more `samples`, "
                "`solver.ridge: auto`, a smaller `kernel`, or other layers"
            )
    return notes


def _number(share: float) -> str:
    return f"{share:.2f}" if math.isfinite(share) else "unknown"


def _by_step(trials: list[FusedTrial]) -> dict[tuple[int, tuple[str, ...]], list[Step]]:
    """Steps that trials have in common; where `auto` chose differently, each choice has a row of its own."""
    found: dict[tuple[int, tuple[str, ...]], list[Step]] = {}
    for trial in trials:
        for index, step in enumerate(trial.steps):
            found.setdefault((index, step.row.layers), []).append(step)
    return found


def _targets(options: FuseAndRetrain, trials: list[FusedTrial]) -> list[Target]:
    if options.layers != "auto" or options.until is None:
        return []
    until, sizes = options.until, [trial.size for trial in trials if trial.size is not None]
    missed = set().union(*(unmet(until, now, original) for original, now in sizes))
    got = {  # by the trial that is furthest from it
        "layers": str(max(now.layers for _, now in sizes)),
        "macs": f"{max(now.macs / original.macs for original, now in sizes):.2%}",
        "params": f"{max(now.params / original.params for original, now in sizes):.2%}",
    }
    asked = {name: getattr(until, name) for name in got if getattr(until, name) is not None}
    return [Target(name, str(value), got[name], name not in missed) for name, value in asked.items()]


def _best(trials: list[FusedTrial], task: str, metric: str) -> FusedTrial:
    last = {trial.seed: trial.steps[-1] for trial in trials}
    scores = {seed: step.final[metric] if step.monitored is None else step.monitored for seed, step in last.items()}
    pick = max if higher_is_better(task, metric) else min
    return pick(trials, key=lambda trial: scores[trial.seed])


def _plot(folder: Path, trials: list[FusedTrial]) -> list[str]:
    """Draws what there is; a note where the curve of the net that was fused is not there to be drawn."""
    notes, steps = [], [step for trial in trials for step in trial.steps if step.curve]
    if steps:
        before = [curve for trial in trials if (curve := _curve_of(trial.start, steps[0].monitor))]
        if len(before) < len(trials):
            notes.append(
                f"learning-curves.png is without the net that was fused: no metrics.csv with {steps[0].monitor} lies "
                "beside its checkpoint"
            )
        panels = {}
        for (index, _), found in _by_step(trials).items():
            curves = {"fused": [s.curve for s in found if s.curve]}
            curves |= {_FROM[name]: [one.curve for one in _beside(found, name)] for name in _baselines(trials)}
            panels[f"{index + 1}: {found[0].widths}"] = curves | {widths(trials[0].network): before}
        learning_curves(folder / "learning-curves.png", panels, steps[0].monitor)
    if rows := trials[0].ranking.rows:
        points = [(name, unexplained, saved_macs) for name, _, _, unexplained, _, _, saved_macs in rows]
        candidates(folder / "candidates.png", points)
    return notes


def _curve_of(checkpoint: Path, monitor: str) -> list[float]:
    """By epoch, of the run that wrote the checkpoint; empty where its folder does not tell."""
    try:
        with (checkpoint.parent / "metrics.csv").open(newline="") as file:
            return [float(row[monitor]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError):  # of a line that was cut, too
        return []


def _rank(rank: int | None, features: int) -> str:
    """Conjugate gradients do not know the rank."""
    return f"{'?' if rank is None else rank} of {features}"
