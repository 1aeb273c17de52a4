"""`prune` of single weights and of kernels: one step, from masks to a repaired network."""

import copy
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import fx

from compresskit.commands.moments import gatherer
from compresskit.commands.prune.section import MaskAndRetrain
from compresskit.commands.prune.stages import PRUNED, PruneStep
from compresskit.commands.repair.judging import held_out
from compresskit.commands.repair.ladder import Ladder
from compresskit.commands.session import Session, Start
from compresskit.commands.trials import keep
from compresskit.graph.masks import Masks, apply_masks
from compresskit.jobs.lanes import percents
from compresskit.passes.prune.masks import Masker
from compresskit.passes.repair.layers import Repair
from compresskit.passes.repair.masked import repair_masked


def masker(current: Session, options: MaskAndRetrain, start: Start, seed: int) -> Masker:
    """Raises RecipeError where nothing can be masked, or the target lies out of what can be reached."""
    return Masker(start.network, options, current.data.input_shape, start.masks, seed)


def prune_weights(
    current: Session, options: MaskAndRetrain, start: Start, original: fx.GraphModule, folder: Path, seed: int,
    moments: Path,
) -> PruneStep:  # fmt: skip
    """Masks and repairs the start's network, into pruned.pt. original: whose outputs repairs are judged by. moments:
    folder of those that the repair takes."""
    began = time.perf_counter()
    found = masker(current, options, start, seed).mask()
    network = copy.deepcopy(start.network)
    apply_masks(network, found.masks)
    judge = held_out(current, original, options.held_out)
    ladder = Ladder(current, original, judge, f"seed {seed}")
    ladder.climb("masked", lambda: network, since=began)
    current.progress.log(f"seed {seed}: {found.got / found.whole:.2%} are left")
    solved = list[Repair]()
    ladder.layers(
        options.repair, options.norms, options.samples,
        lambda: _repaired(current, options, start.network, found.masks, moments, solved),
    )  # fmt: skip
    layers = {name.rpartition(".")[0]: None for name in found.masks}
    ladder.fit(options, folder, seed, layers, found.masks)
    keep(current, ladder.network, folder / PRUNED, seed, ladder.metrics, replace(start, masks=found.masks))
    groups = [(name, [name], units, kept) for name, units, kept in found.layers]
    unrepaired, unexplained = (solved[0].skipped, solved[0].unexplained) if solved else ({}, {})
    return PruneStep(
        options.target.goal, found.asked, found.got, found.whole, ladder.rungs, groups, found.skipped, unrepaired,
        unexplained,
    )  # fmt: skip


def _repaired(
    current: Session, options: MaskAndRetrain, network: fx.GraphModule, masks: Masks, moments: Path,
    solved: list[Repair],
) -> fx.GraphModule:  # fmt: skip
    """The masked network with layers solved again. solved: gets what the repair says of them."""
    gather, chained = gatherer(current, moments, options.samples), options.repair == "top-down"
    shape, start = current.data.input_shape, partial(percents, current.progress)
    solved.append(repair_masked(network, masks, gather, shape, chained=chained, start=start))
    return solved[0].network
