"""`prune` of single weights and of kernels: one step, from masks to a network whose norms are estimated again."""

import copy
from dataclasses import replace
from pathlib import Path

from compresskit.commands.figures import said
from compresskit.commands.prune.section import MaskAndRetrain
from compresskit.commands.prune.stages import PRUNED, PruneStep
from compresskit.commands.session import Session, Start
from compresskit.commands.trials import keep
from compresskit.graph.masks import apply_masks
from compresskit.passes.prune.masks import Masker
from compresskit.passes.prune.repair import estimate_norms


def masker(current: Session, options: MaskAndRetrain, start: Start, seed: int) -> Masker:
    """Raises RecipeError where nothing can be masked, or the target lies out of what can be reached."""
    return Masker(start.network, options, current.data.input_shape, start.masks, seed)


def prune_weights(current: Session, options: MaskAndRetrain, start: Start, folder: Path, seed: int) -> PruneStep:
    """Masks the start's network, into pruned.pt."""
    found = masker(current, options, start, seed).mask()
    network = copy.deepcopy(start.network)
    apply_masks(network, found.masks)
    masked = current.evaluate(network)
    current.progress.log(f"seed {seed}: masked, {found.got / found.whole:.2%} are left, {said(masked)}")
    estimated = masked
    if options.norms:
        split = current.data.train.sample(options.samples)
        if estimate_norms(network, split.batches(current.recipe.moments.batch_size, current.device)):
            estimated = current.evaluate(network)
            current.progress.log(f"seed {seed}: norms estimated, {said(estimated)}")
    keep(current, network, folder / PRUNED, seed, estimated, replace(start, masks=found.masks))
    groups = [(name, [name], units, kept) for name, units, kept in found.layers]
    goal = options.target.goal
    return PruneStep(goal, found.asked, found.got, found.whole, masked, estimated, groups, found.skipped)
