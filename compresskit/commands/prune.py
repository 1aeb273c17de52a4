"""`compresskit prune`: takes channels out, repairs what is left, and retrains, in one step or in several."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx

from compresskit.commands.figures import Figures, latency
from compresskit.commands.moments import gatherer
from compresskit.commands.parents import MODEL
from compresskit.commands.prune_report import plan_result, prune_result
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, Session, Start, session, trial_folder, with_folder
from compresskit.commands.trials import check_room, check_training, keep, train_network
from compresskit.data.augmix import AugMix
from compresskit.errors import RecipeError
from compresskit.graph.cut import cut
from compresskit.graph.shapes import evaluating
from compresskit.passes.prune import Data, Pruned, Pruner
from compresskit.passes.prune_options import PruneTarget
from compresskit.passes.repair import blind, estimate_norms, repair
from compresskit.passes.responses import Responses, responses
from compresskit.recipes.schema import PruneAndRetrain
from compresskit.storage.atomic import write_json
from compresskit.storage.checkpoint import load
from compresskit.training.losses import loss_for

PRUNED, STEP = "pruned.pt", "pruned.json"  # before retraining


@dataclass(frozen=True)
class PruneStep:
    """What one step did. cut, repaired: metrics of the net as it is cut, and with its repair. groups: name, layers,
    channels, kept. difference: of the cut net from the whole one that does not see what is cut, on one batch."""

    goal: str
    asked: float
    got: float
    whole: float
    cut: dict[str, float]
    repaired: dict[str, float]
    groups: list[tuple[str, list[str], int, int]]
    skipped: dict[str, str]
    unrepaired: dict[str, str]
    unexplained: dict[str, float]
    difference: float

    @staticmethod
    def read(path: Path) -> "PruneStep":
        return PruneStep(**json.loads(path.read_text()))


@dataclass
class PrunedTrial:
    """One trial: figures before and after, and its steps, each with its metrics after retraining."""

    seed: int
    path: Path
    before: Figures
    after: Figures
    reloaded: float
    steps: list[PruneStep]
    retrained: list[dict[str, float]] = field(default_factory=list)


def run(arguments: Arguments, progress: Progress) -> Result:
    """Prunes a trained net; writes pruned.pt, as it was before retraining, and model.pt."""
    with session("prune", arguments, ("data", "prune"), progress, from_checkpoint=True) as current:
        options: PruneAndRetrain = current.recipe.section("prune")
        network = current.parent(0).network
        pruner = Pruner(network, options, current.data.input_shape, partial(_latency, current))
        if options.retrain is not None:
            check_training(current, network, options.retrain)
        if arguments.dry_run:
            return plan_result(current, options, pruner)
        current = with_folder(current)
        assert current.folder is not None
        if current.group.is_main:
            check_room(current, [network], current.folder.path, options.steps)
        trials = [_run_trial(current, options, trial) for trial in range(current.recipe.trials)]
        return prune_result(current, options, trials)


def _run_trial(current: Session, options: PruneAndRetrain, trial: int) -> PrunedTrial:
    folder, start = trial_folder(current, trial, current.recipe.trials), current.parent(trial)
    seed = current.recipe.seed + trial
    assert start.path is not None
    before = current.figures(start.network, current.evaluate(start.network), start.path)
    network, steps, retrained = start.network, [], []
    whole = Pruner(network, options, current.data.input_shape, partial(_latency, current))
    for number in range(1, options.steps + 1):
        share = (whole.asked / whole.whole) ** (number / options.steps)
        target = PruneTarget(**{options.target.goal: share * whole.whole})
        own = folder / f"step-{number}" if options.steps > 1 else folder
        network, step = _step(current, replace(options, target=target), start, network, own, seed)
        steps.append(step)
        if options.retrain is not None:
            label = f"retrain seed {seed}" + (f", step {number} of {options.steps}" if options.steps > 1 else "")
            train_network(current, network, options.retrain, seed, own / "retrain", label)
            retrained.append(current.evaluate(network))
    path = folder / MODEL
    metrics = retrained[-1] if retrained else steps[-1].repaired
    keep(current, network, path, seed, metrics, start)
    after = current.figures(network, metrics, path)
    return PrunedTrial(seed, path, before, after, current.reload_difference(network, path), steps, retrained)


def _step(
    current: Session, options: PruneAndRetrain, start: Start, network: fx.GraphModule, folder: Path, seed: int
) -> tuple[fx.GraphModule, PruneStep]:
    """The network cut and repaired, and what that did; read back where an interrupted run had finished it."""
    done = folder / STEP
    if not (current.arguments.resume and done.exists()):
        pruner = Pruner(network, options, current.data.input_shape, partial(_latency, current))
        pruned = pruner.prune(_data(current, options), seed)
        bare = cut(network, pruned.channels, pruned.alive)
        cut_metrics = current.evaluate(bare)
        said = ", ".join(f"{name} {value:.4f}" for name, value in cut_metrics.items())
        current.progress.log(
            f"seed {seed}: cut to {pruned.got / pruned.whole:.1%} of the {options.target.goal}, {said}"
        )
        smaller, unexplained, unrepaired = _repaired(current, options, network, bare, pruned, folder)
        repaired = current.evaluate(smaller)
        said = ", ".join(f"{name} {value:.4f}" for name, value in repaired.items())
        current.progress.log(f"seed {seed}: repaired, {said}")
        keep(current, smaller, folder / PRUNED, seed, repaired, start)
        groups = [
            (group.name, list(group.layers), len(group.atoms), kept)
            for group, kept in zip(pruned.groups, pruned.kept, strict=True)
        ]
        step = PruneStep(
            options.target.goal, pruned.asked, pruned.got, pruned.whole, cut_metrics, repaired, groups, pruned.skipped,
            unrepaired, unexplained, _difference(current, network, bare, pruned),
        )  # fmt: skip
        if current.group.is_main:
            write_json(done, asdict(step))
        current.group.barrier()
    return load(folder / PRUNED, current.device).network, PruneStep.read(done)


def _repaired(
    current: Session, options: PruneAndRetrain, network: fx.GraphModule, bare: fx.GraphModule, pruned: Pruned,
    folder: Path,
) -> tuple[fx.GraphModule, dict[str, float], dict[str, str]]:  # fmt: skip
    """The cut network with its repair; by layer the share of variance lost, and why others were not repaired."""
    smaller, unexplained, unrepaired = bare, dict[str, float](), dict[str, str]()
    if options.repair != "none":
        gather = gatherer(current, folder / "moments", options)
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
        """Of the mean loss in eval mode."""
        loss = loss_for(current.data.task, None, current.data.anchors)
        parameters = dict(network.named_parameters())
        sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        with evaluating(network):
            for inputs, targets in split.batches(size, current.device):
                value = loss(network(inputs), targets) * len(targets)
                found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), found, strict=True):
                    total += 0 if gradient is None else gradient
        return {name: total / len(split) for name, total in sums.items()}

    def paired(network: fx.GraphModule, layers: Sequence[str], augmix: AugMix) -> Responses:
        draws = torch.Generator().manual_seed(current.recipe.seed)
        pairs = ((x, _augmented(current, x, augmix, draws)) for x, _ in split.batches(size, current.device))
        return responses(network, layers, pairs)

    return Data(gradients, paired)


def _augmented(current: Session, images: Tensor, augmix: AugMix, draws: torch.Generator) -> Tensor:
    """Normalised images, augmented as bytes. Raises RecipeError for what are no images of bytes."""
    if images.ndim != 4:
        raise RecipeError("prune.criterion: augprune augments images; take another criterion for these data")
    mean, std = (
        torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]
        for values in (current.data.mean, current.data.std)
    )
    greys = (images * std + mean) * 255
    bytes_ = greys.round()
    if float(bytes_.min()) < 0 or float(bytes_.max()) > 255 or float((greys - bytes_).abs().max()) > 0.01:
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
