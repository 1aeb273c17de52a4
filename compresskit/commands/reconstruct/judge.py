"""Held-out images as judges of networks that may become a result."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.graph.shapes import evaluating
from compresskit.passes.reconstruct.targets import Judge
from compresskit.training.tasks.losses import divergence_for


def judge_by(current: Session, original: fx.GraphModule, split: Split, alone: int) -> Judge:
    """accuracy: of a classifier on `split`. alone: so many images of `split` measure what each site loses alone."""
    expected, divergence = _outputs(current, original, split), divergence_for(current.data.task)

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
