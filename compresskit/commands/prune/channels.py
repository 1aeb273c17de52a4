"""`prune` of channels: one step, from scores to a repaired network."""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.commands.figures import latency
from compresskit.commands.moments import gatherer
from compresskit.commands.prune.choice import chosen
from compresskit.commands.prune.section import PruneAndRetrain
from compresskit.commands.prune.stages import PRUNED, PruneStep
from compresskit.commands.repair.judging import divergence_of, held_out, judging_split
from compresskit.commands.repair.ladder import Ladder
from compresskit.commands.session import Session, Start
from compresskit.commands.trials import keep
from compresskit.data.augmentation.augmix import AugMix
from compresskit.data.own.targets import OWN
from compresskit.errors import RecipeError
from compresskit.graph.channels.cut import cut
from compresskit.graph.shapes import evaluating
from compresskit.jobs.lanes import percents
from compresskit.numerics.outputs import largest_difference
from compresskit.numerics.pruning.fisher import root_of_classes, root_of_squares
from compresskit.passes.prune.channels import Data, Pruned, Pruner
from compresskit.passes.prune.criteria.gradients import curvatures, mean_gradients
from compresskit.passes.prune.criteria.responses import Responses, responses
from compresskit.passes.repair.layers import Repair, blind, repair
from compresskit.training.tasks.losses import CLASSES, Loss, loss_for


def pruner(current: Session, options: PruneAndRetrain, network: fx.GraphModule, whole: float | None = None) -> Pruner:
    """whole: see `Pruner`. Raises RecipeError where no channel can go, or the target is out of what can be reached."""
    return Pruner(network, options, current.data.input_shape, partial(_latency, current), whole)


def prune_channels(
    current: Session, options: PruneAndRetrain, start: Start, original: fx.GraphModule, folder: Path, seed: int,
    moments: Path, whole: float, before: PruneStep | None,
) -> PruneStep:  # fmt: skip
    """Cuts and repairs the start's network, into pruned.pt. original: whose outputs repairs are judged by. moments:
    folder of those that the repair takes. whole: size of the network. before: the last step, of several."""
    plan = pruner(current, options, start.network, whole)
    choice = chosen(current, plan, folder, lambda: plan.prune(_data(current, options, start.network, moments), seed))
    pruned = choice.pruned
    bare = cut(start.network, pruned.channels, pruned.alive)
    difference = _difference(current, start.network, bare, pruned)
    judge, found = held_out(current, original, options.held_out), list[Repair]()
    ladder = Ladder(current, original, judge, f"seed {seed}")
    ladder.climb("cut", lambda: bare, since=time.perf_counter() - choice.seconds)
    current.progress.log(f"seed {seed}: {pruned.got / pruned.whole:.1%} of the {options.target.goal} left")
    ladder.layers(
        options.repair, options.norms, options.samples,
        lambda: _repaired(current, options, start.network, pruned, moments, found),
    )  # fmt: skip
    places = _places(pruned, before)
    ladder.fit(options, folder, seed, {layer: torch.tensor(kept) for layer, kept in places.items()})
    keep(current, ladder.network, folder / PRUNED, seed, ladder.metrics, start)
    groups = [
        (group.name, list(group.layers), len(group.atoms), kept)
        for group, kept in zip(pruned.groups, pruned.kept, strict=True)
    ]
    unrepaired, unexplained = (found[0].skipped, found[0].unexplained) if found else ({}, {})
    return PruneStep(
        options.target.goal, pruned.asked, pruned.got, pruned.whole, ladder.rungs, groups, pruned.skipped, unrepaired,
        unexplained, difference, _by_kind(pruned), pruned.sensitivity, places,
    )  # fmt: skip


def _places(pruned: Pruned, before: PruneStep | None) -> dict[str, list[int]]:
    """See `PruneStep`; of layers that the last step knew, too."""
    left = {layer: kept.tolist() for layer, kept in pruned.channels.places(pruned.alive).items()}
    if before is None:
        return left
    known = before.places
    return {layer: [known[layer][place] for place in kept] for layer, kept in left.items() if layer in known}


def _by_kind(pruned: Pruned) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for group, kept in zip(pruned.groups, pruned.kept, strict=True):
        size, left = found.get(group.kind, (0, 0))
        found[group.kind] = (size + len(group.atoms), left + kept)
    return found


def _repaired(
    current: Session, options: PruneAndRetrain, network: fx.GraphModule, pruned: Pruned, moments: Path,
    found: list[Repair],
) -> fx.GraphModule:  # fmt: skip
    """The cut network with layers solved again. found: gets what the repair says of them."""
    gather, chained = gatherer(current, moments, options.samples), options.repair == "top-down"
    shape, start = current.data.input_shape, partial(percents, current.progress)
    found.append(repair(network, pruned.channels, pruned.alive, gather, shape, chained=chained, start=start))
    return cut(found[0].network, pruned.channels, pruned.alive)


def _data(current: Session, options: PruneAndRetrain, network: fx.GraphModule, moments: Path) -> Data:
    split = current.data.train.sample(options.images)
    size, task = current.recipe.moments.batch_size, current.data.task

    def gradients(network: fx.GraphModule) -> dict[str, Tensor]:
        loss = loss_for(task, _own_loss(current, options), current.data.anchors)
        return mean_gradients(network, split.batches(size, current.device), loss)

    def curved(network: fx.GraphModule, layers: Sequence[str]) -> dict[str, Tensor]:
        if task == OWN:
            raise RecipeError(
                "prune.criterion: fisher knows divergences of classes and of single tensors, and these outputs may be "
                "of any structure; take backward, taylor or magnitude"
            )
        root = root_of_classes if task in CLASSES else root_of_squares
        return curvatures(network, layers, split.batches(size, current.device), root, current.recipe.seed)

    def paired(network: fx.GraphModule, layers: Sequence[str], augmix: AugMix) -> Responses:
        draws = torch.Generator().manual_seed(current.recipe.seed)
        mean, std = (
            torch.tensor(values, device=current.device)[:, None, None]
            for values in (current.data.mean, current.data.std)
        )
        pairs = ((x, _augmented(x, mean, std, augmix, draws)) for x, _ in split.batches(size, current.device))
        return responses(network, layers, pairs)

    def judging(images: int) -> Iterable[Any]:
        return current.inputs_of(judging_split(current, images))

    gather = gatherer(current, moments, options.samples)
    divergence = divergence_of(current, network, judging_split(current, options.held_out))
    return Data(gradients, paired, gather, judging, divergence, curved, partial(percents, current.progress))


def _own_loss(current: Session, options: PruneAndRetrain) -> Loss | None:
    """For targets of any structure, which no loss of ours knows, the first that the recipe trains with."""
    recipe = current.recipe
    sections = (section for section in (options.retrain, recipe.finetune, recipe.train) if section is not None)
    found = (section.loss for section in sections if section.loss is not None)
    return next(found, None) if current.data.task == OWN else None


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
        return largest_difference(whole(inputs), bare(inputs))


def _latency(current: Session, network: fx.GraphModule) -> float:
    """The main process's, so that all choose alike."""
    report, shape = current.recipe.report, current.data.input_shape
    return current.group.share(latency(network, shape, current.device, report.latency_batch, report.latency_repeats))
