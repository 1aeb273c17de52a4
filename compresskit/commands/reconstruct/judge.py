"""Held-out images as judges of networks that may become a result."""

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


def judge_by(current: Session, original: fx.GraphModule, split: Split) -> Judge:
    """loss: mean KL divergence of a candidate's classes (of images or pixels) from the original's, or their mean
    squared difference for other outputs. accuracy: of a classifier on `split`."""
    expected = _outputs(current, original, split)

    def loss(candidate: fx.GraphModule) -> float:
        found = _outputs(current, candidate, split)
        if current.data.task not in ("classification", "segmentation"):
            return float((found - expected).square().mean())
        return float(soft_targets(found, expected, 1.0))

    def accuracy(candidate: fx.GraphModule) -> float:
        return current.evaluate(candidate, split)["accuracy"]

    return Judge(loss, accuracy if current.data.task == "classification" else None)


def _outputs(current: Session, network: fx.GraphModule, split: Split) -> Tensor:
    with torch.inference_mode(), evaluating(network):
        batches = split.batches(current.recipe.moments.batch_size, current.device)
        return torch.cat([network(inputs).double() for inputs, _ in batches])
