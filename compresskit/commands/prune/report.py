"""The report of `prune`: what was asked and reached, accuracy at every stage, and what each layer kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskit.commands.analyses import add_rates
from compresskit.commands.figures import Figures, slower
from compresskit.commands.figures import compared as before_and_after
from compresskit.commands.parents import MODEL
from compresskit.commands.prune.compare import Compared, Options, add_comparison, settings, stages_of
from compresskit.commands.prune.section import MaskAndRetrain
from compresskit.commands.prune.stages import PruneStep, Retrained, changes, kinds, ratios
from compresskit.commands.repair.ladder import ladder_notes, ladder_table
from compresskit.commands.result import Figure, Format, Result, Table, Target, shortened
from compresskit.commands.session import Session
from compresskit.commands.teacher import teacher_notes
from compresskit.passes.prune.channels import Pruner
from compresskit.passes.prune.mask_options import OF_WEIGHTS
from compresskit.passes.prune.masks import ROUNDING, Masker
from compresskit.plots.prune import ratios_by_layer, sensitivities
from compresskit.training.tasks.evaluation import higher_is_better

_UNITS = {"params": "parameters", "macs": "MACs", "channels": "channels", "latency": "ms"} | dict.fromkeys(
    OF_WEIGHTS, "weights"
)
_SHOWN = 3  # layers of a group


@dataclass
class PrunedTrial:
    """One trial: figures before and after, and its steps, each with its metrics after retraining.

    judged: metrics on held-out images, by which the best of several trials is picked.
    """

    seed: int
    path: Path
    before: Figures
    after: Figures
    reloaded: float
    steps: list[PruneStep]
    retrained: list[Retrained]
    judged: dict[str, float] = field(default_factory=dict)


def plan_result(current: Session, options: Options, plan: Pruner | Masker) -> Result:
    """What a dry run says: what can be reached, and what may go."""
    unit = _UNITS[options.target.goal]
    form: Format = "ms" if options.target.goal == "latency" else "count"
    result = Result("prune", f"{current.recipe.name} (dry run)")
    result.figures = [
        Figure(f"{unit} now", (), (plan.now,), form),
        Figure(f"{unit} asked for", (), (plan.asked,), form),
        Figure(f"{unit} that can be reached", (), (plan.least,), form),
    ]
    if isinstance(plan, Masker):
        rows: list[tuple[Any, ...]] = [(layer.name, len(layer.order)) for layer in plan.layers]
    else:
        rows = [(_labelled(group.name, group.layers), len(group.atoms)) for group in plan.groups]
    result.tables = [Table(f"{options.kind} that may go", (_where(options), options.kind), rows)]
    if options.compare is not None:
        others = [(*setting.varied.values(), setting.at) for setting in settings(options)]
        result.tables.append(
            Table(f"{len(others)} settings to compare", (*settings(options)[0].varied, "target"), others)
        )
    result.skipped = plan.skipped
    result.notes = ["nothing was written"]
    return result


def prune_result(
    current: Session, options: Options, trials: list[PrunedTrial], compared: list[list[Compared]]
) -> Result:
    """trials: those that did not fail. compared: of every trial the settings that did not; raises what stopped the
    first job where all did."""
    if not trials and not any(compared):
        raise next(iter(current.failed.values()))
    assert current.folder is not None
    result = Result("prune", current.recipe.name, current.folder.path)
    if trials:
        _add_own(current, result, options, trials)
    if any(compared):
        add_comparison(current, result, compared, options.kind)
    return result


def _add_own(current: Session, result: Result, options: Options, trials: list[PrunedTrial]) -> None:
    """What there is to say of the networks that are kept."""
    assert current.folder is not None
    batch = current.recipe.report.latency_batch
    result.figures = before_and_after([t.before for t in trials], [t.after for t in trials], batch, current.device)
    result.targets = [_target(options, trials)]
    result.checks = {"model.pt read back": max(trial.reloaded for trial in trials)}
    result.tables = [_stages(options, trials), *_ladders(options, trials), *_kinds(trials)]
    result.tables += [_layers(options, trials), *_sensitivity(trials)]
    first = trials[0].steps[0]
    result.skipped = first.skipped | {f"{layer} (repair)": reason for layer, reason in first.unrepaired.items()}
    if isinstance(options, MaskAndRetrain):
        result.notes = ["masks leave shapes as they are: the file shrinks, time and memory do not"]
    else:
        check = "cut against the whole net that does not see what is cut"
        result.checks[check] = max(step.difference for trial in trials for step in trial.steps)
        result.notes = slower(result.figures) + _single(trials)
    result.notes += teacher_notes(options.retrain)
    result.notes += ladder_notes(current, [step.rungs for trial in trials for step in trial.steps])
    if current.recipe.trials > 1:
        result.notes.append(_promote(current, trials))
    if first.unexplained:
        worst = max(first.unexplained, key=lambda layer: first.unexplained[layer])
        result.notes.append(
            f"repair: {len(first.unexplained)} layers solved again; most is lost of {worst}, "
            f"{first.unexplained[worst]:.1%} of the variance of its output"
        )
    result.details = {"trials": [{"seed": t.seed, "steps": [s.plain for s in t.steps]} for t in trials]}
    if current.group.is_main and current.recipe.report.plots:
        ratios_by_layer(current.folder.path / "pruning-ratios.png", ratios(trials[0].steps), options.kind)
        if first.sensitivity:
            points = {name: [(one.gone, one.loss) for one in own] for name, own in first.sensitivity.items()}
            sensitivities(current.folder.path / "sensitivity.png", points)
    if options.retrain is not None and options.retrain.layerwise_rates is not None:
        add_rates(current, result, trials[0].retrained[-1].history, options.retrain.layerwise_rates)


def _single(trials: list[PrunedTrial]) -> list[str]:
    """A note on layers of which one channel is left: whatever they computed, one number a position passes."""
    steps = [step for trial in trials for step in trial.steps]
    found = {name: size for step in steps for name, _, size, kept in step.groups if kept == 1 < size}
    if not found:
        return []
    told = shortened([f"{name} (of {size})" for name, size in found.items()])
    return [f"one channel is left of {told}; set min_channels, another budget, or budget.least of a spectral one"]


def _promote(current: Session, trials: list[PrunedTrial]) -> str:
    """Copies the best trial's checkpoint to the top of the run folder, where the next verb looks for it."""
    assert current.folder is not None
    name = next(iter(trials[0].judged))
    sign = 1 if higher_is_better(current.data.task, name) else -1

    def worth(trial: PrunedTrial) -> float:
        value = sign * trial.judged[name]
        return value if math.isfinite(value) else -math.inf  # NaN is neither more nor less than any other

    best = max(trials, key=worth)
    if current.group.is_main:
        current.folder.copy(best.path, MODEL)
    split = "test" if current.data.validation is None else "validation"
    return f"model.pt is that of seed {best.seed}, the best by {split} {name}"


def _target(options: Options, trials: list[PrunedTrial]) -> Target:
    last = [trial.steps[-1] for trial in trials]
    goal, unit = options.target.goal, _UNITS[options.target.goal]
    whole = trials[0].steps[0].whole
    asked, got = last[0].asked, max(step.got for step in last)

    def said(value: float) -> str:
        number = f"{value:,.4g}" if goal == "latency" else f"{math.floor(value * (1 + ROUNDING)):,}"
        if goal in OF_WEIGHTS:
            return f"{1 - value / whole:.2%} zeros, {number} weights left"
        return f"{number} {unit} ({value / whole:.2%})"

    # a latency is measured again each time; one that varies by a few per cent was reached all the same
    slack = 1.05 if goal == "latency" else 1 + ROUNDING
    allowed = ", 5 % more being allowed" if goal == "latency" and asked < got <= asked * slack else ""
    return Target(goal, said(asked), said(got) + allowed, got <= asked * slack)


def _stages(options: Options, trials: list[PrunedTrial]) -> Table:
    metrics = list(trials[0].before.metrics)
    stages = stages_of(options, [step for trial in trials for step in trial.steps])
    rows: list[tuple[Any, ...]] = [("original", *(tuple(t.before.metrics[m] for t in trials) for m in metrics))]
    for number in range(max(len(trial.steps) for trial in trials)):
        label = f"step {number + 1}: " if options.steps > 1 else ""
        there = [trial for trial in trials if len(trial.steps) > number]  # others had reached the target before
        at = {
            "cut": [trial.steps[number].cut for trial in there],
            "repaired": [trial.steps[number].repaired for trial in there],
            "retrained": [trial.retrained[number].metrics for trial in there if trial.retrained],
        }
        for stage, name in stages.items():
            rows.append((f"{label}{name}", *(tuple(found[m] for found in at[stage]) for m in metrics)))
    return Table("test metrics", ("", *metrics), rows)


def _ladders(options: Options, trials: list[PrunedTrial]) -> list[Table]:
    """What each repair gave and cost, of the steps that all trials have."""
    tables = []
    for number, steps in enumerate(zip(*(trial.steps for trial in trials), strict=False)):
        if len(steps[0].rungs) > 1:
            label = f"step {number + 1}: repairs" if options.steps > 1 else "repairs"
            tables.append(ladder_table(label, [step.rungs for step in steps]))
    return tables


def _layers(options: Options, trials: list[PrunedTrial]) -> Table:
    """Of the first trial: channels, weights or kernels at the beginning and at the end."""
    rows = [
        (_labelled(name, layers), whole, kept, f"{1 - kept / whole:.1%}")
        for name, layers, whole, kept in changes(trials[0].steps)
    ]
    return Table(options.kind, (_where(options), "before", "kept", "gone"), rows)


def _kinds(trials: list[PrunedTrial]) -> list[Table]:
    """Of the first trial, where channels of several kinds could go: what was taken of each."""
    found = kinds(trials[0].steps)
    rows = [(kind, whole, left, f"{1 - left / whole:.1%}") for kind, (whole, left) in found.items()]
    return [Table("kinds of channels", ("kind", "before", "kept", "gone"), rows)] if set(found) - {"channels"} else []


def _sensitivity(trials: list[PrunedTrial]) -> list[Table]:
    """Of the first trial's first step: what each group alone costs, where it was measured."""
    step = trials[0].steps[0]
    if not step.sensitivity:
        return []
    layers = {name: own for name, own, _, _ in step.groups}
    shares = [f"{point.share:.0%}" for point in next(iter(step.sensitivity.values()))]
    rows = [
        (_labelled(name, layers[name]), *(f"{point.loss:.4g}" for point in points))
        for name, points in step.sensitivity.items()
    ]
    return [Table("divergence of the outputs when a share of one group alone goes", ("made by", *shares), rows)]


def _labelled(name: str, layers: Sequence[str]) -> str:
    """The layers of a group, and of which kind it is where its name says so."""
    _, bracket, kind = name.partition(" (")
    return f"{_made_by(layers)} ({kind}" if bracket else _made_by(layers)


def _where(options: Options) -> str:
    return "made by" if options.kind == "channels" else "of"


def _made_by(layers: Sequence[str]) -> str:
    more = len(layers) - _SHOWN
    return ", ".join(layers[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
