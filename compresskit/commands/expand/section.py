"""The section `expand` of a recipe: passes/expand/options.py, with stages and comparisons."""

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.options import option
from compresskit.passes.expand.options import Expand, Factors, First, Rate
from compresskit.training.distillation import Distill
from compresskit.training.options import Training

Stage = Literal["expand", "train", "contract"]


STAGES: tuple[Stage, ...] = ("expand", "train", "contract")


@option
class Variant:
    """A network trained beside: what of `expand` and of `train` is different."""

    strategy: str | None = None  # none: the compact net as it is
    rate: Rate | Literal["auto"] | dict[str, Rate] | None = None
    limit: Annotated[float, Gt(1)] | None = None
    layers: tuple[str, ...] | None = None
    factors: Factors | dict[str, Factors] | None = None
    first: First | None = None
    mode: Literal["online", "sequential"] | None = None
    init: Literal["standard", "from_checkpoint", "nonlinear", "expandnet"] | None = None  # expandnet: see `train.init`
    distill: Distill | Literal["none"] | None = None  # in the place of `train.distill`
    train: Training | None = None  # keys of `train` that are different, such as {epochs: 90}; the others are as there


@option
class ExpandAndTrain(Expand):
    """Train a compact net as an expanded one, of which layers are products of factors, and multiply it back."""

    stages: tuple[Stage, ...] = STAGES  # neighbours; later ones need --checkpoint
    init_train: Training | None = None  # of the nonlinear net, with init: nonlinear; default: as `train`
    compare: dict[str, Variant] = field(default_factory=dict)  # networks trained beside, by a name for the table

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ValueError(f"stages: name one at least of {', '.join(STAGES)}")
        if "-".join(self.stages) not in "-".join(STAGES):
            raise ValueError(f"stages: {list(self.stages)} are not neighbours; keep the order {', '.join(STAGES)}")
        if self.nonlinear and "contract" in self.stages:
            raise ValueError(
                "stages: a net with nonlinear factors cannot be contracted; leave `contract` out, or train linear "
                "factors that start from it with init: nonlinear"
            )
        starts = [self.init, *(variant.init for variant in self.compare.values())]
        if self.init_train is not None and "nonlinear" not in starts:
            raise ValueError("init_train: only init: nonlinear trains a net to start from")
        if self.compare and self.stages != STAGES:
            raise ValueError("compare: its networks go through all stages; leave `stages` out")
