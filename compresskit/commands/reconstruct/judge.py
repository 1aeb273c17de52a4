"""Held-out images as judges of networks that may become a result."""

from functools import partial

from torch import fx

from compresskit.commands.repair.judging import divergence_of
from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.passes.held_out import HeldOut
from compresskit.passes.reconstruct.targets import Judge


def judge_by(current: Session, original: fx.GraphModule, split: Split, alone: int) -> Judge:
    """accuracy: of a classifier on `split`. alone: so many images of `split` measure what each site loses alone."""
    divergence = divergence_of(current, original, split)

    def accuracy(candidate: fx.GraphModule) -> float:
        return current.evaluate(candidate, split)["accuracy"]

    return Judge(
        HeldOut(original, partial(current.inputs_of, split), divergence),
        accuracy if current.data.task == "classification" else None,
        divergence,
        partial(current.inputs_of, split.sample(alone)),
    )
