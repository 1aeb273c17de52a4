"""`prune` of single weights and of kernels: one step, from masks to a network whose norms are estimated again."""

import copy
from dataclasses import replace
from pathlib import Path

from torch import fx

from compresskit.commands.prune.section import MaskAndRetrain
from compresskit.commands.prune.stages import PRUNED, PruneStep
from compresskit.commands.repair.ladder import Ladder
from compresskit.commands.session import Session, Start
from compresskit.commands.trials import keep
from compresskit.graph.masks import apply_masks
from compresskit.passes.prune.masks import Masker


def masker(current: Session, options: MaskAndRetrain, start: Start, seed: int) -> Masker:
    """Raises RecipeError where nothing can be masked, or the target lies out of what can be reached."""
    return Masker(start.network, options, current.data.input_shape, start.masks, seed)


def prune_weights(
    current: Session, options: MaskAndRetrain, start: Start, original: fx.GraphModule, folder: Path, seed: int
) -> PruneStep:
    """Masks the start's network, into pruned.pt."""
    found = masker(current, options, start, seed).mask()
    network = copy.deepcopy(start.network)
    apply_masks(network, found.masks)
    ladder = Ladder(current, original, options.held_out, f"seed {seed}")
    ladder.climb("masked", lambda: network)
    current.progress.log(f"seed {seed}: {found.got / found.whole:.2%} are left")
    if options.norms:
        ladder.norms(options.samples)
    layers = {name.rpartition(".")[0]: None for name in found.masks}
    ladder.fit(options, folder, seed, layers, found.masks)
    keep(current, ladder.network, folder / PRUNED, seed, ladder.metrics, replace(start, masks=found.masks))
    groups = [(name, [name], units, kept) for name, units, kept in found.layers]
    return PruneStep(
        options.target.goal, found.asked, found.got, found.whole, ladder.rungs, groups, found.skipped,
    )  # fmt: skip
