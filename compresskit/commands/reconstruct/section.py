"""The section `reconstruct` of a recipe: passes/reconstruct/options.py, with images, retraining and comparisons."""

from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.options import option
from compresskit.passes.reconstruct.options import GOALS, Chaining, Reconstruct
from compresskit.passes.shares import share
from compresskit.training.options import Training


@option
class Compare:
    """Settings tried beside the one that is kept: every combination, without low-rank factors and retraining."""

    at: tuple[Annotated[float, Gt(0)] | str, ...] = ()  # in the place of lam, keep, error or the value of the target
    chaining: tuple[Chaining, ...] = ()
    selection: tuple[Literal["backward", "group-lasso"], ...] = ()
    debias: tuple[bool, ...] = ()


@option
class ReconstructAndRetrain(Reconstruct):
    """Drop input channels and neurons of layers, fit their weights again to give the same outputs, retrain if asked."""

    samples: Annotated[int, Gt(1)] | None = None  # training images that the moments are taken from; default all
    # images that judge what a target leads to: of the validation split, or of the training images where there is none
    held_out: Annotated[int, Gt(0)] = 5000
    alone: Annotated[int, Gt(0)] = 128  # of these, that measure what thinning each layer alone does, before a target
    retrain: Training | None = None  # behind all; default: none
    compare: Compare | None = None  # other settings, without low-rank factors and retraining

    def __post_init__(self) -> None:
        super().__post_init__()
        for at in self.compare.at if self.compare is not None else ():
            _check_amount(at, self.amount)


def _check_amount(at: float | str, amount: str) -> None:
    """Raises ValueError if a value of `compare.at` cannot stand for the key `amount`."""
    if amount in GOALS:
        fits, form = isinstance(at, str) and 0 < share(at) < 1, "a share such as 40%"
    elif amount == "keep":
        fits = 0 < share(at) <= 1 if isinstance(at, str) else float(at).is_integer()
        form = "a number of inputs or a share such as 50%"
    else:
        fits, form = not isinstance(at, str), "a number"
    if not fits:
        raise ValueError(f"compare.at: {at!r} cannot stand for `{amount}`; give {form}")
