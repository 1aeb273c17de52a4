"""The sections of a recipe. One recipe can hold those of several verbs."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import StringConstraints

from compresskit.data.dataset import AnySet
from compresskit.data.registry import DATASETS
from compresskit.models.registry import MODELS
from compresskit.options import option
from compresskit.passes.fuse_options import Fuse
from compresskit.passes.reconstruct_options import GOALS, Chaining, Reconstruct
from compresskit.passes.shares import share
from compresskit.recipes.hints import Kinds
from compresskit.training.options import Training

Size = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)? ?([kMGT]|[KMGT]i)?B$")]  # 500 MiB, 4GB; 1GB = 10^9

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@option
class MomentOptions:
    """How moments are gathered and kept."""

    cache: str | None = None  # folder of the cached moments; default: inside the run folder
    stale: Literal["recompute", "fail"] = "recompute"  # what to do with a cache of other weights, data or options
    batch_size: Annotated[int, Gt(0)] = 256
    memory: Annotated[float, Gt(0)] | Size | None = (
        None  # limit on the statistics held at a time; default: what is free
    )

    def memory_bytes(self) -> int | None:
        """The limit in bytes; None where there is none."""
        if not isinstance(self.memory, str):
            return None if self.memory is None else int(self.memory)
        number = self.memory.rstrip("BikMGT ")
        return int(float(number) * _UNITS[self.memory.removeprefix(number).strip(" B")])


@option
class ReportOptions:
    """What the report measures beside the test metric."""

    latency_batch: Annotated[int, Gt(0)] = 1  # samples in the batch that is timed
    latency_repeats: Annotated[int, Gt(0)] = 30  # timed runs, of which the median is reported
    plots: bool = True


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
    retrain: Training | None = None
    compare: Compare | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for at in self.compare.at if self.compare is not None else ():
            _check_amount(at, self.amount)

    @property
    def amount(self) -> str:
        """The key that says how much is kept: of the target, where there is one."""
        where, names = (
            (self, ("lam", "keep", "error")) if self.target is None else (self.target, (*GOALS, "accuracy_drop"))
        )
        return next(name for name in names if getattr(where, name) is not None)


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


@option
class Recipe:
    """All that one recipe says, defaults filled in; None for a section that it does not have."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/\\]+$")]  # of the run folder; default: the recipe file's
    description: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    trials: Annotated[int, Ge(1)] = 1  # independent runs, reported as mean and standard deviation
    deterministic: bool = False  # refuse operations whose result varies from run to run
    model: Annotated[Any, Kinds(MODELS)] | None = None
    data: Annotated[AnySet, Kinds(DATASETS)] | None = None
    train: Training | None = None
    finetune: Training | None = None
    fuse: FuseAndRetrain | None = None
    reconstruct: ReconstructAndRetrain | None = None
    moments: MomentOptions = MomentOptions()
    report: ReportOptions = ReportOptions()

    def section(self, name: str) -> Any:
        """A section that was required when the recipe was loaded. Raises KeyError if the recipe does not have it."""
        found = getattr(self, name)
        if found is None:
            raise KeyError(name)
        return found

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out; sections that it does not have are left out."""
        return {key: value for key, value in _plain(asdict(self)).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
