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
    # train each fused architecture from random initialisation, too: as `retrain` does, or with settings of its own
    baseline: Literal["none", "random"] | Training = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline == "random" and self.retrain is None:
            raise ValueError(
                "baseline: random trains as `retrain` does, which is missing; add it, or give settings here"
            )
