"""`prune` of channels: one step, from scores to a repaired network."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.commands.figures import latency, said
from compresskit.commands.moments import gatherer
from compresskit.commands.prune.section import PruneAndRetrain
from compresskit.commands.prune.stages import PRUNED, PruneStep
from compresskit.commands.session import Session, Start
from compresskit.commands.trials import keep
from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import RecipeError
from compresskit.graph.channels.cut import cut
from compresskit.graph.shapes import evaluating
from compresskit.passes.prune.channels import Data, Pruned, Pruner
from compresskit.passes.prune.gradients import mean_gradients
from compresskit.passes.prune.repair import blind, estimate_norms, repair
from compresskit.passes.prune.responses import Responses, responses
from compresskit.training.tasks.losses import loss_for


def pruner(current: Session, options: PruneAndRetrain, network: fx.GraphModule) -> Pruner:
    """Raises RecipeError where no channel can go, or the target lies out of what can be reached."""
    return Pruner(network, options, current.data.input_shape, partial(_latency, current))


def prune_channels(
    current: Session, options: PruneAndRetrain, start: Start, folder: Path, seed: int, moments: Path
) -> PruneStep:
    """Cuts and repairs the start's network, into pruned.pt. moments: folder of those that the repair takes."""
    pruned = pruner(current, options, start.network).prune(_data(current, options), seed)
    bare = cut(start.network, pruned.channels, pruned.alive)
    difference = _difference(current, start.network, bare, pruned)  # before the repair, which may change it in place
    cut_metrics = current.evaluate(bare)
    share = pruned.got / pruned.whole
    current.progress.log(f"seed {seed}: cut to {share:.1%} of the {options.target.goal}, {said(cut_metrics)}")
    smaller, unexplained, unrepaired = _repaired(current, options, start.network, bare, pruned, moments)
    repaired = current.evaluate(smaller)
    if options.repair != "none" or repaired != cut_metrics:
        done = "repaired" if options.repair != "none" else "norms estimated"
        current.progress.log(f"seed {seed}: {done}, {said(repaired)}")
    keep(current, smaller, folder / PRUNED, seed, repaired, start)
    groups = [
        (group.name, list(group.layers), len(group.atoms), kept)
        for group, kept in zip(pruned.groups, pruned.kept, strict=True)
    ]
    return PruneStep(
        options.target.goal, pruned.asked, pruned.got, pruned.whole, cut_metrics, repaired, groups, pruned.skipped,
        unrepaired, unexplained, difference, _by_kind(pruned),
    )  # fmt: skip


def _by_kind(pruned: Pruned) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for group, kept in zip(pruned.groups, pruned.kept, strict=True):
        size, left = found.get(group.kind, (0, 0))
        found[group.kind] = (size + len(group.atoms), left + kept)
    return found


def _repaired(
    current: Session, options: PruneAndRetrain, network: fx.GraphModule, bare: fx.GraphModule, pruned: Pruned,
    moments: Path,
) -> tuple[fx.GraphModule, dict[str, float], dict[str, str]]:  # fmt: skip
    """The cut network with its repair; by layer the share of variance lost, and why others were not repaired."""
    smaller, unexplained, unrepaired = bare, dict[str, float](), dict[str, str]()
    if options.repair != "none":
        gather = gatherer(current, moments, options.samples)
        shape = current.data.input_shape
        chained = options.repair == "top-down"
        found = repair(network, pruned.channels, pruned.alive, gather, shape, chained=chained)
        smaller = cut(found.network, pruned.channels, pruned.alive)
        unexplained, unrepaired = found.unexplained, found.skipped
    if options.norms:
        split = current.data.train.sample(options.samples)
        estimate_norms(smaller, split.batches(current.recipe.moments.batch_size, current.device))
    return smaller, unexplained, unrepaired


def _data(current: Session, options: PruneAndRetrain) -> Data:
    split = current.data.train.sample(options.images)
    size = current.recipe.moments.batch_size

    def gradients(network: fx.GraphModule) -> dict[str, Tensor]:
        loss = loss_for(current.data.task, None, current.data.anchors)
        return mean_gradients(network, split.batches(size, current.device), loss)

    def paired(network: fx.GraphModule, layers: Sequence[str], augmix: AugMix) -> Responses:
        draws = torch.Generator().manual_seed(current.recipe.seed)
        mean, std = (
            torch.tensor(values, device=current.device)[:, None, None]
            for values in (current.data.mean, current.data.std)
        )
        pairs = ((x, _augmented(x, mean, std, augmix, draws)) for x, _ in split.batches(size, current.device))
        return responses(network, layers, pairs)

    return Data(gradients, paired)


def _augmented(images: Any, mean: Tensor, std: Tensor, augmix: AugMix, draws: torch.Generator) -> Tensor:
    """Images normalised by `mean` and `std` (channels, 1, 1), augmented as bytes. Raises RecipeError for what are no
    images of bytes."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise RecipeError("prune.criterion: augprune augments images; take another criterion for these data")
    greys = (images * std + mean) * 255
    bytes_ = greys.round()
    if not bool(((bytes_ >= 0) & (bytes_ <= 255) & ((greys - bytes_).abs() <= 0.01)).all()):
        raise RecipeError("prune.criterion: augprune augments images of bytes, these data are others; take another one")
    changed = augmix(bytes_.to(torch.uint8), augmix.draw(len(images), draws).to(images.device))
    return (changed / 255 - mean) / std


def _difference(current: Session, network: fx.GraphModule, bare: fx.GraphModule, pruned: Pruned) -> float:
    inputs, _ = next(current.data.test.batches(64, current.device))
    whole = blind(network, pruned.channels, pruned.alive)
    with torch.inference_mode(), evaluating(whole), evaluating(bare):
        return float((whole(inputs) - bare(inputs)).abs().max())


def _latency(current: Session, network: fx.GraphModule) -> float:
    """The main process's, so that all choose alike."""
    report, shape = current.recipe.report, current.data.input_shape
    return current.group.share(latency(network, shape, current.device, report.latency_batch, report.latency_repeats))
