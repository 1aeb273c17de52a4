"""The section `fuse` of a recipe: the options of passes/fuse/options.py, with images, retraining and a baseline."""

from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.options import option
from compresskit.passes.fuse.options import Fuse
from compresskit.training.options import Training


@option
class FuseAndRetrain(Fuse):
    """Fuse neighbouring layers into one by least squares on moments, then retrain if asked."""

    samples: Annotated[int, Gt(1)] | None = None  # training images that the moments are taken from; default all
    held_out: Annotated[int, Gt(0)] = 2000  # images of the validation split (else the test set) that measure it
    retrain: Training | None = None  # after each fused pair
    # train each fused architecture from random weights, too. random: as `retrain` does. whole: for all epochs that the
    # fused net has had, those before it was fused included. both: one of each. Or settings of its own
    baseline: Literal["none", "random", "whole", "both"] | Training = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline in ("random", "whole", "both") and self.retrain is None:
            raise ValueError(
                f"baseline: {self.baseline} trains as `retrain` does, which is missing; add it, or give settings here"
            )
