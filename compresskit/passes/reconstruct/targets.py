"""How much each site keeps: as the recipe says site by site, or so that the whole network reaches a target."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.selectors import select
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.held_out import Divergence, loss_of
from compresskit.passes.reconstruct.alone import losses_alone
from compresskit.passes.reconstruct.budget import SizeModel, goal_of, shared_out
from compresskit.passes.reconstruct.chaining import Choosing, Draft, Fitting, completed, dead_atoms, masked, own_moments
from compresskit.passes.reconstruct.options import GroupLasso, Reconstruct
from compresskit.passes.reconstruct.readers import Plan, summed
from compresskit.passes.reconstruct.selection import Choice, Curve, Rule, rule_for
from compresskit.passes.reconstruct.workers import Start, Workers
from compresskit.passes.shares import share

_PROBES = (1e-2, 5e-2, 0.2)  # relative errors at which the loss of a site alone is measured; it is linear near 0
_BISECTIONS = 8  # of the share of the size, to find the smallest network within a drop of accuracy


# what does not change while targets, chainings and debiasing do: curves and measured losses, of one network and data
Memory = dict[tuple[Any, ...], list[Any]]


@dataclass(frozen=True)
class Judge:
    """What held-out images say of a network that may become the result.

    loss: divergence of its outputs from the original's, lower is better. accuracy: a share; None where there is no such
    thing. divergence: of a batch of outputs, the mean of what `loss` is the mean of. images: batches of those that
    each site alone is measured on, which takes many passes.
    """

    loss: Callable[[fx.GraphModule], float]
    accuracy: Callable[[fx.GraphModule], float] | None
    divergence: Divergence
    images: Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Reached:
    """rules, choices: by site. near: a draft that has fitted some of these choices already."""

    rules: dict[str, Rule]
    choices: dict[str, Choice] = field(default_factory=dict)
    near: Draft = field(default_factory=Draft)
    notes: list[str] = field(default_factory=list)


def rules_of(network: fx.GraphModule, plan: Plan, options: Reconstruct) -> dict[str, Rule]:
    """The rule of each site, from `lam`, `keep` or `error`; of several selectors that mean a layer the last one counts.

    Raises RecipeError where the layers of one site are told different things.
    """
    kind = options.amount
    value = getattr(options, kind)
    by_layer = {reader.layer: value for reader in plan.readers}
    if isinstance(value, dict):
        by_layer = {layer: amount for selector, amount in value.items() for layer in select(network, [selector])}
    rules = {}
    for site in plan.sites:
        told = {by_layer[reader.layer] for reader in site.readers}
        if len(told) > 1:
            raise RecipeError(
                f"reconstruct.{kind}: {site.name} drop the same inputs of the same activation, but were told "
                f"{' and '.join(map(str, told))}; give them one value, or set sampler: dynamic"
            )
        rules[site.name] = rule_for(told.pop(), kind, site.n_groups)
    return rules


def reach(
    network: fx.GraphModule, plan: Plan, options: Reconstruct, model: SizeModel, moments: Mapping[str, Moments],
    judge: Judge | None, memory: Memory, workers: Workers, start: Start,
) -> Reached:  # fmt: skip
    """Rules that reach the target, and what they mean where sites are reconstructed in parallel.

    The trade-off of every site is computed once, and the budget shared out by what each loses for what it saves: by the
    error of its layers as a share of their variance, and by the divergence that thinning this site alone brings on
    held-out images. Of the two, the one whose network diverges less is taken.
    """
    assert options.target is not None
    curves = _curves(plan, options, moments, memory, workers, start)
    draft = Draft()

    def chosen(counts: Sequence[int]) -> dict[str, Choice]:
        sites = zip(plan.sites, curves, counts, strict=True)
        return {site.name: _at(curve, kept) for site, curve, kept in sites if kept in curve.kept}

    def built(counts: Sequence[int]) -> fx.GraphModule:
        nonlocal draft  # what the last one has in common with this one need not be fitted again
        draft = completed(plan, chosen(counts), draft, moments, True, workers, start)
        return masked(network, plan, draft)

    losses = [[torch.tensor(curve.errors, dtype=torch.float64) for curve in curves]]
    if judge is not None:
        losses.append(_measured(network, plan, curves, moments, judge, memory, workers, start))
    goal = goal_of(options.target)
    if goal is None:
        counts, notes = _within_drop(model, curves, losses[-1], built, judge, options.target.accuracy_drop or 0.0)
    else:
        part = share(getattr(options.target, goal))
        candidates = [shared_out(curves, loss, model, goal, part) for loss in losses]
        counts = candidates[0]
        if judge is not None and candidates[1] != candidates[0]:
            counts = min(candidates, key=lambda found: judge.loss(built(found)))
        notes = []
    if isinstance(options.chosen_selection, GroupLasso) and goal is not None:
        counts = topped(curves, counts, model, goal, share(getattr(options.target, goal)))
    rules = {site.name: Rule(count=kept) for site, kept in zip(plan.sites, counts, strict=True)}
    known = chosen(counts)
    if not options.debias:
        if options.chaining != "parallel":  # whose moments are others, and so are the weights at any lambda
            return Reached(rules, {}, Draft(), notes)
        lams = {name: Rule(lam=choice.lam) for name, choice in known.items()}  # the shrunken weights are those of one
        return Reached(rules | lams, {}, Draft(), notes)
    return Reached(rules, known, draft, notes)


def topped(curves: Sequence[Curve], counts: Sequence[int], model: SizeModel, goal: str, part: float) -> list[int]:
    """The counts with more inputs, between the points of each curve, as far as the target has room for them.

    A path of the group lasso has points at some lambdas only, and ends before it keeps all: that leaves room.
    """
    cost, limit, found = model.cost(goal), model.limit(goal, part), list(counts)
    for place, curve in enumerate(curves):
        above = min((kept for kept in curve.kept if kept > counts[place]), default=int(model.full[0, place]) + 1)
        for count in range(counts[place] + 1, above):
            more = torch.tensor([[*found[:place], count, *found[place + 1 :]]], dtype=torch.float64)
            if float(cost(more)) > limit:
                break
            found[place] = count
    return found


def _curves(
    plan: Plan, options: Reconstruct, moments: Mapping[str, Moments], memory: Memory, workers: Workers, start: Start
) -> list[Curve]:
    """The trade-off of every site."""
    key = ("curves", options.chosen_selection, options.min_channels, *(site.name for site in plan.sites))
    if key not in memory:
        jobs = [Choosing(site, own_moments(site, moments), Rule(), options) for site in plan.sites]
        memory[key] = [choice.curve for choice in workers.run("inputs of each site", jobs, start)]
    return memory[key]


def _at(curve: Curve, kept: int) -> Choice:
    index = curve.kept.index(kept)
    lam, gap = (curve.lams[index], curve.gaps[index]) if curve.lams else (None, None)
    return Choice(curve.supports[index], curve, None, lam, gap)


def _measured(
    network: fx.GraphModule, plan: Plan, curves: Sequence[Curve], moments: Mapping[str, Moments], judge: Judge,
    memory: Memory, workers: Workers, start: Start,
) -> list[Tensor]:  # fmt: skip
    """The loss at every point of each curve, from a few that are measured with all other sites left whole."""
    key = ("losses", *(curve.kept for curve in curves), *(curve.errors for curve in curves))
    if key in memory:
        return memory[key]
    places = [_probes(curve) for curve in curves]
    batches = list(judge.images())
    jobs = [
        Fitting(site, own_moments(site, moments), tuple(_at(curve, curve.kept[point]) for point in points))
        for site, curve, points in zip(plan.sites, curves, places, strict=True)
    ]
    changes = [
        Draft({job.site.name: choice}, layers)
        for job, fits in zip(jobs, workers.run("fits of each site alone", jobs, start), strict=True)
        for choice, layers in zip(job.choices, fits, strict=True)
    ]
    done = start("losses of each site alone", [1] * (len(changes) * len(batches)))
    losses = _alone(network, plan, changes, batches, judge.divergence, done)
    found, at = [], 0
    for curve, points in zip(curves, places, strict=True):
        rising = torch.tensor([0.0, *losses[at : at + len(points)]], dtype=torch.float64).cummax(0).values.tolist()
        at += len(points)
        errors = torch.tensor(curve.errors, dtype=torch.float64)
        found.append(_interpolated(errors, [0.0, *(curve.errors[point] for point in points)], rising))
    memory[key] = found
    return found


def _alone(
    network: fx.GraphModule, plan: Plan, drafts: Sequence[Draft], batches: Sequence[Tensor], divergence: Divergence,
    done: Callable[[], None],
) -> list[float]:  # fmt: skip
    """What each draft alone costs; where norms or attention sum over what it drops, of a network without that."""
    apart = summed(plan.channels)
    whole = {i for i, draft in enumerate(drafts) if bool((dead_atoms(plan, draft.choices) & apart).any())}
    layers = [draft.layers for i, draft in enumerate(drafts) if i not in whole]
    rest = iter(losses_alone(network, layers, batches, divergence, done))
    losses = []
    for index, draft in enumerate(drafts):
        if index in whole:
            losses.append(loss_of(masked(network, plan, draft), network, batches, divergence))
            for _ in batches:
                done()
        else:
            losses.append(next(rest))
    return losses


def _probes(curve: Curve) -> list[int]:
    """Points of the curve near the relative errors that are looked at, of ever larger ones."""
    near = {min(range(len(curve.errors)), key=lambda i: abs(curve.errors[i] - probe)) for probe in _PROBES}
    found = list[int]()
    for point in sorted(near):
        if curve.errors[point] > (curve.errors[found[-1]] if found else 0.0):
            found.append(point)
    return found


def _interpolated(at: Tensor, xs: Sequence[float], ys: Sequence[float]) -> Tensor:
    """Piecewise linear through the points, and on at the last slope beyond them."""
    if len(xs) < 2:
        return at.clone()
    x, y = torch.tensor(xs, dtype=torch.float64), torch.tensor(ys, dtype=torch.float64)
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + slope * (at - x[right - 1])


def _within_drop(
    model: SizeModel, curves: Sequence[Curve], losses: Sequence[Tensor],
    built: Callable[[Sequence[int]], fx.GraphModule], judge: Judge | None, points: float,
) -> tuple[list[int], list[str]]:  # fmt: skip
    """The counts of the smallest network that loses at most so many points of accuracy on held-out images."""
    if judge is None or judge.accuracy is None:
        raise RecipeError("reconstruct.target.accuracy_drop: it takes a classifier and held-out images; give a size")
    whole = [curve.kept[0] for curve in curves]
    least = [curve.kept[-1] for curve in curves]
    cost = model.cost("size")
    low = float(cost(torch.tensor([least], dtype=torch.float64)) / cost(model.full))
    best, high, floor = whole, 1.0, judge.accuracy(built(whole)) - points / 100
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        counts = shared_out(curves, losses, model, "size", middle)
        if judge.accuracy(built(counts)) >= floor:
            best, high = counts, middle
        else:
            low = middle
    return best, [f"the smallest network within {points:g} points on held-out images has {high:.1%} of the size"]
