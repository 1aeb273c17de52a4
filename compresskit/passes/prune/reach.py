"""What each kind of groups can reach, for those whose target lies beyond what they named."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from compresskit.graph.channels.kinds import Kind
from compresskit.graph.channels.walk import find_channels
from compresskit.numerics.pruning.ratios import counts
from compresskit.passes.prune.groups import Group, find_groups
from compresskit.passes.prune.options import Prune
from compresskit.passes.prune.sizes import CutSizes
from compresskit.shapes import Shape

_ORDER: tuple[Kind, ...] = ("channels", "hidden", "head-dim", "heads", "width")


def smallest(
    size: Callable[[Tensor], float], n_atoms: int, groups: Sequence[Group], options: Prune, ratio: float = 1.0
) -> float:
    """The size with this share of every group gone, as far as options allow. size: by what is alive, (n_atoms,)."""
    alive = torch.ones(n_atoms, dtype=torch.bool)
    sizes = [len(group.atoms) for group in groups]
    left = counts(np.full(len(groups), ratio), sizes, options.min_channels, options.round_to)
    for group, count in zip(groups, left, strict=True):
        alive[group.atoms[count:]] = False
    return size(alive)


def reach_by_kind(network: fx.GraphModule, options: Prune, input_shape: Shape) -> str:
    """What can be reached by the kinds that a recipe names, and with more of them one after another, in shares of the
    whole: "hidden reaches 71.0%, with head-dim 43.0%, with width 12.0%".

    "" where there is one kind alone, or the target is a latency, which would have to be measured each time.
    """
    if options.target.goal == "latency":
        return ""
    named = () if options.groups == "auto" else options.groups
    found = [
        _in_turn(network, options, input_shape, named, heads)
        for heads, other in (("head-dim", "heads"), ("heads", "head-dim"))
        if other not in named
    ]
    return "; or ".join(dict.fromkeys(filter(None, found)))


def _in_turn(network: fx.GraphModule, options: Prune, input_shape: Shape, named: Sequence[Kind], heads: str) -> str:
    """heads: how those of attention go, as one run can cut them in one way alone."""
    channels = find_channels(network, input_shape, "whole" if heads == "heads" else "positions")
    groups = find_groups(network, channels, options.layers)[0]
    there = [kind for kind in _ORDER if any(group.kind == kind for group in groups)]
    first = [kind for kind in there if kind in named] or there[:1]
    if len(there) < 2:
        return ""
    sizes = CutSizes(network, channels, input_shape)
    whole = sizes(options.target.goal, torch.ones(channels.n_atoms, dtype=torch.bool))

    def reached(kinds: Sequence[Kind]) -> str:
        own = [group for group in groups if group.kind in kinds]
        found = smallest(lambda alive: sizes(options.target.goal, alive), channels.n_atoms, own, options)
        return f"{found / whole:.1%}"

    taken = [f"{' and '.join(first)} reaches {reached(first)}"]
    for kind in there:
        if kind not in first:
            first = [*first, kind]
            taken.append(f"with {kind} {reached(first)}")
    return ", ".join(taken)
