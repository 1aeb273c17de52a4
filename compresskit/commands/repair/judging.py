"""What judges repairs: outputs on held-out inputs, against those of the original network."""

from functools import partial

from torch import fx
from torch.nn import functional

from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.data.own.targets import OWN
from compresskit.numerics.distillation import soft_targets
from compresskit.passes.held_out import Divergence, HeldOut, OfVariance
from compresskit.training.tasks.losses import CLASSES


def judging_split(current: Session, images: int) -> Split:
    """So many images of the validation split, or of the training images where there is none: never of the test set."""
    return (current.data.validation or current.data.train).sample(images)


def divergence_of(current: Session, original: fx.GraphModule, split: Split) -> Divergence:
    """How far outputs are from the original's, the mean over a batch: the Kullback-Leibler divergence of the classes
    (of images or pixels) from the original's, or the mean squared difference of other outputs; of outputs of any
    structure as a share of their variance on `split`, the mean over the tensors."""
    task = current.data.task
    if task == OWN:
        return OfVariance(original, partial(current.inputs_of, split))
    return partial(soft_targets, temperature=1.0) if task in CLASSES else functional.mse_loss


def held_out(current: Session, original: fx.GraphModule, images: int) -> HeldOut:
    split = judging_split(current, images)
    return HeldOut(original, partial(current.inputs_of, split), divergence_of(current, original, split))
