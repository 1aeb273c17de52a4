"""Structured pruning: channels that are worth least go, from every tensor that has a slot of theirs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.kinds import Kind
from compresskit.graph.channels.walk import Channels, find_channels
from compresskit.numerics.pruning.ratios import counts
from compresskit.passes.held_out import Divergence
from compresskit.passes.prune.budgets import Alone, Floats, Weighed
from compresskit.passes.prune.budgets import Divergence as AloneBudget
from compresskit.passes.prune.criteria import Scored, atom_scores
from compresskit.passes.prune.criteria.base import Curvatures
from compresskit.passes.prune.criteria.responses import Responses
from compresskit.passes.prune.groups import Group, find_groups
from compresskit.passes.prune.options import Prune
from compresskit.passes.prune.reach import reach_by_kind, smallest
from compresskit.passes.prune.sizes import CutSizes
from compresskit.passes.reconstruct.chaining import Gather
from compresskit.passes.reconstruct.workers import Start, silent
from compresskit.passes.repair.sensitivity import Sensitivity
from compresskit.shapes import Shape

# Kinds of groups by what they cost in accuracy; a later one joins where those before it would have to lose too much.
STAGES: tuple[tuple[Kind, ...], ...] = (
    ("channels", "hidden"),
    ("channels", "hidden", "head-dim", "width"),
)
ROOM = 0.3  # of every group, that a target must leave for the next kind to stay out
Measure = Callable[[fx.GraphModule], float]  # the latency of a network, in milliseconds


def _not_given(what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise ValueError(f"prune: the criterion or the budget takes {what}, and none were given; see Data")

    return refuse


@dataclass(frozen=True)
class Data:
    """What criteria and budgets take from images; each is called only if it is needed. held_out: batches of so many
    inputs that judge what channels alone cost. divergence: of outputs from the original's. curvatures: see `Scored`.
    start: is told how far long work is.
    """

    gradients: Callable[[fx.GraphModule], dict[str, Tensor]] = _not_given("gradients")
    responses: Callable[[fx.GraphModule, Sequence[str], AugMix], Responses] = _not_given("augmented images")
    moments: Gather = _not_given("moments")
    held_out: Callable[[int], Iterable[Any]] = _not_given("held-out images")
    divergence: Divergence = _not_given("divergences of outputs")
    curvatures: Curvatures = _not_given("curvatures of the loss")
    start: Start = silent


@dataclass(frozen=True)
class Pruned:
    """What goes. alive: (n_atoms,) bool. kept: by group, how many of its channels. asked, got, whole: of the target, in
    its own unit. sensitivity: by group, what shares of it alone cost, where that was measured."""

    channels: Channels
    alive: Tensor
    groups: list[Group]
    kept: list[int]
    skipped: dict[str, str]
    asked: float
    got: float
    whole: float
    sensitivity: dict[str, list[Alone]]


class Pruner:
    """What is worked out once for a network and a recipe, before any data are read."""

    def __init__(
        self, network: fx.GraphModule, options: Prune, input_shape: Shape, measure: Measure | None = None,
        whole: float | None = None,
    ) -> None:  # fmt: skip
        """whole: the size of the network where it is known, for a latency is another each time that it is measured.
        Raises RecipeError where no channel can go, or the target lies out of what can be reached."""
        self._network, self._options, self._input_shape = network, options, input_shape
        self.channels = find_channels(network, input_shape, "whole" if "heads" in options.groups else "positions")
        self._sizes, self._measure = CutSizes(network, self.channels, input_shape), measure
        everything = torch.ones(self.channels.n_atoms, dtype=torch.bool)
        self.whole = self.now = self._size(everything) if whole is None else whole
        self.asked = options.target.limit(self.whole)
        self._unscored: list[str] = []  # groups that would go if the criterion had scores of them
        self.groups, self.skipped = self._chosen()
        self._check_scores()
        self.least = self._smallest(1.0)
        goal = options.target.goal
        if not self.least <= self.asked < self.whole:
            raise RecipeError(
                f"prune.target.{goal}: {self.asked:,.6g} was asked for; what can be reached lies from "
                f"{self.least:,.6g} ({self.least / self.whole:.1%}: min_channels of every layer that can be pruned) to "
                f"{self.whole:,.6g}; ask for a value in between, or lower min_channels and round_to"
                f"{self._others(input_shape)}"
            )

    def _chosen(self) -> tuple[list[Group], dict[str, str]]:
        """The groups of the kinds that may go. auto: kinds join in the order of `STAGES` until the target leaves a
        share `ROOM` of every group; those that the criterion has nothing to read of stay."""
        network, options = self._network, self._options
        if options.groups != "auto":
            return find_groups(network, self.channels, options.layers, options.groups)
        every = find_groups(network, self.channels, options.layers)[0]
        lacking = options.criterion.lacking(network, self.channels, {group.name: group.atoms for group in every})
        there = {group.kind for group in every if group.name not in lacking}
        stages = [stage for stage in STAGES if there & set(stage)] or [STAGES[-1]]
        for stage in stages:
            groups, self.skipped = find_groups(network, self.channels, options.layers, stage)
            self.groups = [group for group in groups if group.name not in lacking] or groups
            self._unscored = [group.name for group in groups if group not in self.groups]
            self.skipped |= {name: lacking[name] for name in self._unscored}
            if stage == stages[-1] or self._smallest(1 - ROOM) <= self.asked:
                break
        return self.groups, self.skipped

    def _check_scores(self) -> None:
        """Raises RecipeError where the criterion has nothing to score channels of the groups by."""
        atoms = {group.name: group.atoms for group in self.groups}
        lacking = self._options.criterion.lacking(self._network, self.channels, atoms)
        if not lacking:
            return
        (name, reason), *others = lacking.items()
        more = f" (and {len(others)} more)" if others else ""
        whole = sorted({group.kind for group in self.groups} - {g.kind for g in self.groups if g.name in lacking})
        kinds = f"name prune.groups: [{', '.join(whole)}], " if whole else ""
        raise RecipeError(
            f"prune.criterion: {name}{more}: {reason}; leave it out of prune.layers, {kinds}or take magnitude or taylor"
        )

    def _others(self, input_shape: Shape) -> str:
        """What kinds of groups can reach that were not named, in words."""
        if self.asked >= self.whole:
            return ""
        found = reach_by_kind(self._network, self._options, input_shape)
        if self._unscored:
            names = ", ".join(self._unscored[:3]) + (", ..." if len(self._unscored) > 3 else "")
            told = f"; criterion {self._options.criterion.kind} has nothing to score {names} by, which stay"
            return told + (f": with another one, {found}" if found else "; take another one")
        if self._options.groups == "auto":
            return f"; by kinds of groups, {found}" if found else ""
        there = {self.channels.kinds[atom] for atom in range(self.channels.n_atoms) if atom not in self.channels.frozen}
        found = found or ", ".join(sorted(there - set(self._options.groups)))
        return f", or name more in prune.groups: {found}" if found else ""

    def _smallest(self, ratio: float) -> float:
        """The size with this share of every group gone."""
        return smallest(self._size, self.channels.n_atoms, self.groups, self._options, ratio)

    def prune(self, data: Data, seed: int) -> Pruned:
        """Chooses what goes; the network stays as it is. Raises RecipeError where a criterion has nothing to read."""
        options = self._options
        generator = torch.Generator().manual_seed(seed)
        prunable = torch.zeros(self.channels.n_atoms, dtype=torch.bool)
        for group in self.groups:
            prunable[group.atoms] = True
        scored = Scored(
            self._network, self.channels, self._input_shape, prunable, generator, data.gradients, data.responses,
            data.moments, data.curvatures, data.start,
        )  # fmt: skip
        scores = atom_scores(options.criterion, scored, options.combine)
        own = [scores[group.atoms] for group in self.groups]
        order = [values.argsort(descending=True, stable=True) for values in own]

        def reaches(ratios: Floats) -> bool:
            return self._size(self._alive(order, self._counts(ratios))) <= self.asked

        measured: dict[str, list[Alone]] = {}

        def alone(shares: Sequence[float]) -> list[list[Alone]]:
            found = self._alone(data, order, shares)
            measured.update(zip((group.name for group in self.groups), found, strict=True))
            return found

        goal = "macs" if options.target.goal == "latency" else options.target.goal  # a latency is too dear to measure
        weighed = Weighed(
            self._network,
            [group.layers for group in self.groups],
            own,
            seed,
            size=lambda ratios: self._sizes(goal, self._alive(order, self._counts(ratios))),
            alone=alone,
        )
        ratios = options.budget(weighed, reaches)
        if options.sensitivity and not measured:
            alone(AloneBudget().shares)
        kept = self._filled(order, self._counts(ratios))
        alive = self._alive(order, kept)
        got = self._size(alive)
        return Pruned(self.channels, alive, self.groups, kept, self.skipped, self.asked, got, self.whole, measured)

    def _alone(self, data: Data, order: Sequence[Tensor], shares: Sequence[float]) -> list[list[Alone]]:
        """For each group, what the outputs lose when these shares of it go, and nothing of others."""
        options, whole = self._options, [len(group.atoms) for group in self.groups]
        counted = [self._counts(np.full(len(whole), share)) for share in shares]
        cuts = [
            [self._alive(order, [*whole[:place], kept[place], *whole[place + 1 :]]) for kept in counted]
            for place in range(len(whole))
        ]
        images = (options.budget if isinstance(options.budget, AloneBudget) else AloneBudget()).images
        judge = Sensitivity(
            self._network, self.channels, self._input_shape, data.moments, lambda: data.held_out(images),
            data.divergence, options.repair != "none",
        )  # fmt: skip
        found = np.array(judge.losses(cuts, data.start("what each group alone costs", [1.0] * len(whole))))
        for group, losses in zip(self.groups, found, strict=True):
            if not np.isfinite(losses).all():
                raise ConvergenceError(
                    f"prune.budget: without a part of {group.name} the outputs are not finite; check the checkpoint "
                    "and the data for NaN, or take another budget"
                )
        return [
            [
                Alone(share, 1 - kept[place] / size, float(loss))
                for share, kept, loss in zip(shares, counted, found[place], strict=True)
            ]
            for place, size in enumerate(whole)
        ]

    def _filled(self, order: Sequence[Tensor], kept: Sequence[int]) -> list[int]:
        """One step of channels back to each group that has room for it within the target, from the first group on:
        where many groups are of one size, the ratios of all jump together."""
        found = list(kept)
        if self._options.target.goal == "latency":
            return found
        for place, group in enumerate(self.groups):
            more = [*found[:place], min(found[place] + self._options.round_to, len(group.atoms)), *found[place + 1 :]]
            if self._size(self._alive(order, more)) <= self.asked:
                found = more
        return found

    def _counts(self, ratios: Floats) -> list[int]:
        sizes = [len(group.atoms) for group in self.groups]
        return counts(ratios, sizes, self._options.min_channels, self._options.round_to)

    def _alive(self, order: Sequence[Tensor], kept: Sequence[int]) -> Tensor:
        """All atoms but, of each group, those behind the first `kept` in its order."""
        alive = torch.ones(self.channels.n_atoms, dtype=torch.bool)
        for group, places, count in zip(self.groups, order, kept, strict=True):
            alive[group.atoms[places[count:]]] = False
        return alive

    def _size(self, alive: Tensor) -> float:
        goal = self._options.target.goal
        if goal != "latency":
            return self._sizes(goal, alive)
        assert self._measure is not None
        return self._measure(cut(self._network, self.channels, alive))
