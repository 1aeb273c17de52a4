"""Held-out images as judges of networks that may become a result."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.graph.shapes import evaluating
from compresskit.numerics.distillation import soft_targets
from compresskit.passes.reconstruct.targets import Judge


def judging_split(current: Session, images: int) -> Split:
    """So many images of the validation split, or of the training images where there is none: never of the test set."""
    return (current.data.validation or current.data.train).sample(images)


def judge_by(current: Session, original: fx.GraphModule, split: Split, alone: int) -> Judge:
    """divergence: mean KL divergence of a candidate's classes (of images or pixels) from the original's, or their mean
    squared difference for other outputs. accuracy: of a classifier on `split`. alone: so many images of `split` measure
    what each site loses alone."""
    classes = current.data.task in ("classification", "segmentation")
    expected = _outputs(current, original, split)

    def divergence(found: Tensor, other: Tensor) -> Tensor:
        return soft_targets(found, other, 1.0) if classes else (found - other).square().mean()

    def loss(candidate: fx.GraphModule) -> float:
        return float(divergence(_outputs(current, candidate, split), expected))

    def accuracy(candidate: fx.GraphModule) -> float:
        return current.evaluate(candidate, split)["accuracy"]

    def images() -> Iterable[Tensor]:
        return (inputs for inputs, _ in _batches(current, split.sample(alone)))

    return Judge(loss, accuracy if current.data.task == "classification" else None, divergence, images)


def _outputs(current: Session, network: fx.GraphModule, split: Split) -> Tensor:
    with torch.inference_mode(), evaluating(network):
        return torch.cat([network(inputs).double() for inputs, _ in _batches(current, split)])


def _batches(current: Session, split: Split) -> Iterable[tuple[Tensor, Tensor]]:
    return split.batches(current.recipe.moments.batch_size, current.device)
