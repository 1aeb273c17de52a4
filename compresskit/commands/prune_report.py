"""The report of `prune`: what was asked and reached, accuracy at every stage, and what each layer kept."""

from typing import TYPE_CHECKING, Any

from compresskit.commands.figures import compared, slower
from compresskit.commands.parents import MODEL
from compresskit.commands.result import Figure, Result, Table, Target
from compresskit.commands.session import Session
from compresskit.passes.prune import Pruner
from compresskit.plots.pruning import ratios_by_layer
from compresskit.recipes.schema import PruneAndRetrain
from compresskit.training.evaluation import METRICS

if TYPE_CHECKING:
    from compresskit.commands.prune import PrunedTrial

_UNITS = {"params": "parameters", "macs": "MACs", "channels": "channels", "latency": "ms"}
_SHOWN = 3  # layers of a group


def plan_result(current: Session, options: PruneAndRetrain, pruner: Pruner) -> Result:
    """What a dry run says: what can be reached, and the channels that may go."""
    unit = _UNITS[options.target.goal]
    result = Result("prune", f"{current.recipe.name} (dry run)")
    result.figures = [
        Figure(f"{unit} now", (), (pruner.whole,)),
        Figure(f"{unit} asked for", (), (pruner.asked,)),
        Figure(f"{unit} that can be reached", (), (pruner.least,)),
    ]
    rows: list[tuple[Any, ...]] = [(_made_by(list(group.layers)), len(group.atoms)) for group in pruner.groups]
    result.tables = [Table("channels that may go", ("made by", "channels"), rows)]
    result.skipped = pruner.skipped
    result.notes = ["nothing was written"]
    return result


def prune_result(current: Session, options: PruneAndRetrain, trials: "list[PrunedTrial]") -> Result:
    assert current.folder is not None
    result = Result("prune", current.recipe.name, current.folder.path)
    batch = current.recipe.report.latency_batch
    result.figures = compared([t.before for t in trials], [t.after for t in trials], batch, current.device)
    result.targets = [_target(options, trials)]
    result.checks = {
        "cut against the whole net that does not see what is cut": max(s.difference for t in trials for s in t.steps),
        "model.pt read back": max(trial.reloaded for trial in trials),
    }
    result.tables = [_stages(options, trials), _layers(trials)]
    first = trials[0].steps[0]
    result.skipped = first.skipped | {f"{layer} (repair)": reason for layer, reason in first.unrepaired.items()}
    result.notes = slower(result.figures)
    if len(trials) > 1:
        result.notes.append(_promote(current, trials))
    if options.repair != "none" and first.unexplained:
        worst = max(first.unexplained, key=lambda layer: first.unexplained[layer])
        result.notes.append(
            f"repair: {len(first.unexplained)} layers solved again; most is lost of {worst}, "
            f"{first.unexplained[worst]:.1%} of the variance of its output"
        )
    result.details = {"trials": [{"seed": t.seed, "steps": [vars(s) for s in t.steps]} for t in trials]}
    if current.group.is_main and current.recipe.report.plots:
        groups = trials[0].steps[-1].groups
        whole = {name: size for name, _, size, _ in first.groups}
        kept = {name: 1 - left / whole[name] for name, _, _, left in groups}
        ratios_by_layer(current.folder.path / "pruning-ratios.png", kept)
    return result


def _promote(current: Session, trials: "list[PrunedTrial]") -> str:
    """Copies the best trial's checkpoint to the top of the run folder, where the next verb looks for it."""
    assert current.folder is not None
    name, metric = next(iter(METRICS[current.data.task].items()))
    pick = max if metric.higher_is_better else min
    best = pick(trials, key=lambda trial: trial.after.metrics[name])
    if current.group.is_main:
        current.folder.copy(best.path, MODEL)
    return f"model.pt is that of seed {best.seed}, the best by test {name}"


def _target(options: PruneAndRetrain, trials: "list[PrunedTrial]") -> Target:
    last = [trial.steps[-1] for trial in trials]
    goal, unit = options.target.goal, _UNITS[options.target.goal]
    whole = trials[0].steps[0].whole
    asked, got = last[0].asked, max(step.got for step in last)

    def said(value: float) -> str:
        return f"{value:,.6g} {unit} ({value / whole:.1%})"

    # a latency is measured again each time; one that varies by a few per cent was reached all the same
    slack = 1.05 if goal == "latency" else 1.0
    return Target(goal, said(asked), said(got), got <= asked * slack)


def _stages(options: PruneAndRetrain, trials: "list[PrunedTrial]") -> Table:
    metrics = list(trials[0].before.metrics)
    rows: list[tuple[Any, ...]] = [("original", *(tuple(t.before.metrics[m] for t in trials) for m in metrics))]
    for number in range(options.steps):
        step = f"step {number + 1}: " if options.steps > 1 else ""
        at = [trial.steps[number] for trial in trials]
        rows.append((f"{step}cut", *(tuple(s.cut[m] for s in at) for m in metrics)))
        if options.repair != "none" or options.norms:
            rows.append((f"{step}repaired", *(tuple(s.repaired[m] for s in at) for m in metrics)))
        if options.retrain is not None:
            rows.append((f"{step}fine-tuned", *(tuple(t.retrained[number][m] for t in trials) for m in metrics)))
    return Table("test metrics", ("", *metrics), rows)


def _layers(trials: "list[PrunedTrial]") -> Table:
    """Of the first trial: channels at the beginning and at the end."""
    whole = {name: size for name, _, size, _ in trials[0].steps[0].groups}
    rows = [
        (_made_by(layers), whole[name], kept, f"{1 - kept / whole[name]:.1%}")
        for name, layers, _, kept in trials[0].steps[-1].groups
    ]
    return Table("channels", ("made by", "before", "kept", "gone"), rows)


def _made_by(layers: list[str]) -> str:
    more = len(layers) - _SHOWN
    return ", ".join(layers[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
