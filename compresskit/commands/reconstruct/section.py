"""The section `reconstruct` of a recipe: passes/reconstruct/options.py, with images, retraining and comparisons."""

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.options import option
from compresskit.passes.reconstruct.options import GOALS, Chaining, Reconstruct
from compresskit.passes.repair.blocks import Blocks
from compresskit.passes.repair.matching import Match
from compresskit.passes.shares import share
from compresskit.training.options import Training


@option
class Compare:
    """Settings tried beside the one that is kept: every combination, without low-rank factors and retraining."""

    at: tuple[Annotated[float, Gt(0)] | str, ...] = ()  # in the place of lam, keep, error or the value of the target
    # instead, amounts of lam, keep or error by selector, each with each: {conv2: [8, 12], fc1: [20, 30]}
    grid: dict[str, tuple[Annotated[float, Gt(0)] | str, ...]] = field(default_factory=dict)
    chaining: tuple[Chaining, ...] = ()
    selection: tuple[Literal["backward", "group-lasso"], ...] = ()
    debias: tuple[bool, ...] = ()
    # beside each size, the net with its least weights zero that takes as many bytes as compressed sparse rows
    sparse_rows: bool = False


@option
class ReconstructAndRetrain(Reconstruct):
    """Drop input channels and neurons of layers, fit their weights again to give the same outputs, retrain if asked."""

    samples: Annotated[int, Gt(1)] | None = None  # training images that the moments are taken from; default all
    # images that judge what a target leads to: of the validation split, or of the training images where there is none
    held_out: Annotated[int, Gt(0)] = 5000
    alone: Annotated[int, Gt(0)] = 128  # of these, that measure what thinning each layer alone does, before a target
    # behind it, all weights of one block after another, towards what the original gives behind that block; {} takes its
    # defaults
    blocks: Blocks | None = None
    # behind that, all weights together by gradients, towards the original's outputs, on training images without labels;
    # {} takes its defaults
    match: Match | None = None
    retrain: Training | None = None  # behind all; default: none
    compare: Compare | None = None  # other settings, without low-rank factors, blocks, match and retraining

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compare is None:
            return
        if self.compare.grid and (self.compare.at or self.target is not None):
            raise ValueError("compare.grid: it names amounts by layer; drop `compare.at`, and give lam, keep or error")
        if self.compare.sparse_rows and (self.target is None or self.target.size is None):
            raise ValueError("compare.sparse_rows: it compares at equal bytes; give target: {size: ...}")
        for at in self.compare.at:
            _check_amount("compare.at", at, self.amount)
        for selector, amounts in self.compare.grid.items():
            if not amounts:
                raise ValueError(f"compare.grid: {selector} has no amounts; give one at least")
            for at in amounts:
                _check_amount(f"compare.grid, {selector}", at, self.amount)


def _check_amount(where: str, at: float | str, amount: str) -> None:
    """Raises ValueError if a value cannot stand for the key `amount`."""
    if amount in GOALS:
        fits, form = isinstance(at, str) and 0 < share(at) < 1, "a share such as 40%"
    elif amount == "keep":
        fits = 0 < share(at) <= 1 if isinstance(at, str) else float(at).is_integer()
        form = "a number of inputs or a share such as 50%"
    else:
        fits, form = not isinstance(at, str), "a number"
    if not fits:
        raise ValueError(f"{where}: {at!r} cannot stand for `{amount}`; give {form}")
