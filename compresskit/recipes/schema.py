"""The sections of a recipe. One recipe can hold those of several verbs."""

from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import StringConstraints

from compresskit.data.dataset import AnySet
from compresskit.data.registry import DATASETS
from compresskit.models.registry import MODELS
from compresskit.options import option
from compresskit.passes.criteria import Criterion
from compresskit.passes.expand_options import Expand, Rate
from compresskit.passes.fuse_options import Fuse
from compresskit.passes.isometry_options import Isometry
from compresskit.passes.mask_options import Mask, MaskCriterion, Masking
from compresskit.passes.prune_budgets import Budget
from compresskit.passes.prune_options import Prune, Repair
from compresskit.passes.reconstruct_options import GOALS, Chaining, Reconstruct
from compresskit.passes.shares import Amount, share
from compresskit.passes.sparse_init_options import INITIALISATIONS, Ramanujan
from compresskit.passes.spectra_options import Spectra
from compresskit.recipes.hints import Kinds
from compresskit.training.distillation import Distill
from compresskit.training.landscape import Landscape
from compresskit.training.layer_rates import LayerwiseRates
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


Stage = Literal["expand", "train", "contract"]
STAGES: tuple[Stage, ...] = ("expand", "train", "contract")


@option
class Memorisation:
    """What a net makes of random labels: each is trained again at each of these levels (ExpandNets, Table 7)."""

    label_noise: tuple[Annotated[float, Gt(0), Lt(1)], ...] = (0.2, 0.5, 0.8)  # see data.label_noise

    def __post_init__(self) -> None:
        if not self.label_noise or len(set(self.label_noise)) < len(self.label_noise):
            raise ValueError(f"label_noise: {list(self.label_noise)}; give one level or more, each once")


When = Literal["before", "after"]  # after: the dense net is trained first, then masked and trained as long again


@option
class MaskedTraining(Masking):
    """Set single weights or kernels to zero, by what they are worth."""

    when: When = "before"  # before training; after: train the dense net, mask it, and train it as long again


@option
class RamanujanTraining(Ramanujan):
    """Keep the weights or kernels that a regular graph keeps."""

    when: When = "before"  # before training; after: train the dense net, mask it, and train it as long again


TRAINING_MASKS: dict[str, type[MaskedTraining] | type[RamanujanTraining]] = {
    "weights": MaskedTraining,
    "kernels": MaskedTraining,
    "ramanujan": RamanujanTraining,
}
Drawing = Annotated[Any, Kinds(INITIALISATIONS)]


@option
class Grid:
    """Networks trained beside: one for each row with each column, both changes of the recipe as on the command line."""

    rows: dict[str, dict[str, Any]]  # SAO: {train.init: {kind: sao, degree: 4}}; keys of `model` and `train`
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)  # N = 200: {model.depth: 200}
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)  # of one alone: "SAO, N = 200": {train.epochs: 20}

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows: name one at least")
        names = [name_of_cell(row, column) for row in self.rows for column in self.columns or ("",)]
        if strange := [name for name in self.cells if name not in names]:
            raise ValueError(f"cells: {strange[0]!r} is none of {', '.join(map(repr, names))}")


def name_of_cell(row: str, column: str) -> str:
    """`row, column` of a grid; the row's where there are no columns."""
    return f"{row}, {column}" if column else row


@option
class FreshTraining(Training):
    """Training of a new network."""

    # how weights are drawn, one way or several by `layers`; expandnet: the compact net that an untrained expanded one
    # makes, by the section `expand`; default: as torch draws
    init: Literal["expandnet"] | Drawing | tuple[Drawing, ...] | None = None
    mask: Annotated[Any, Kinds(TRAINING_MASKS)] | None = None  # set weights to zero that stay so: weights, kernels, ...
    layout: Literal["masked", "grouped"] = "masked"  # grouped: layers with regular masks run as grouped ones, and fast
    compare: Grid | None = None  # networks trained beside, in one table
    landscape: Landscape | None = None  # draw the loss around the trained net; {} takes its defaults
    memorisation: Memorisation | None = None  # train on corrupted labels, too; {} takes its defaults

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == ():
            raise ValueError("init: an empty list draws nothing; name a way, or leave it out")


@option
class Variant:
    """A network trained beside: what of `expand` is different."""

    strategy: str | None = None  # none: the compact net as it is
    rate: Rate | dict[str, Rate] | None = None
    layers: tuple[str, ...] | None = None
    factors: Literal[2, 3] | None = None
    mode: Literal["online", "sequential"] | None = None
    init: Literal["standard", "from_checkpoint", "nonlinear", "expandnet"] | None = None  # expandnet: see `train.init`
    distill: Distill | Literal["none"] | None = None  # in the place of `train.distill`


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


@option
class PruneCompare:
    """Settings tried beside the one that is kept: every combination, pruned and retrained as the section says."""

    at: tuple[Amount, ...] = ()  # in the place of the target's value
    criterion: tuple[Criterion, ...] = ()
    budget: tuple[Budget, ...] = ()
    repair: tuple[Repair, ...] = ()
    layerwise_rates: tuple[LayerwiseRates | None, ...] = ()  # of retraining; null: the same rate for all layers


@option
class MaskCompare:
    """Settings tried beside the one that is kept: every combination, masked and retrained as the section says."""

    at: tuple[Amount, ...] = ()  # in the place of the target's value
    criterion: tuple[MaskCriterion, ...] = ()
    budget: tuple[Budget, ...] = ()
    layerwise_rates: tuple[LayerwiseRates | None, ...] = ()  # of retraining; null: the same rate for all layers


@option
class Stepwise:
    """Pruning in one go or in several, with retraining in between."""

    samples: Annotated[int, Gt(1)] = 10000  # training images that layers are repaired and norms estimated by
    steps: Annotated[int, Ge(1)] = 1  # each takes the same share of what is left, and retrains
    retrain: Training | None = None


def _check_pruning(options: "PruneAndRetrain | MaskAndRetrain") -> None:
    """Raises ValueError for steps and rates without retraining, and for a comparison of nothing, or of no targets."""
    compare, target = options.compare, options.target
    if options.steps > 1 and options.retrain is None:
        raise ValueError("steps: several steps retrain in between; add `retrain`, or leave steps out")
    if compare is None:
        return
    if not any(asdict(compare).values()):
        raise ValueError("compare: it names nothing; list values under at, criterion or budget, or leave it out")
    for at in compare.at:
        try:
            type(target)(**{target.goal: at})
        except ValueError as error:
            raise ValueError(f"compare.at: {error}") from error
    if compare.layerwise_rates and options.retrain is None:
        raise ValueError("compare.layerwise_rates: rates are of retraining; add `retrain`, or leave them out")


@option
class PruneAndRetrain(Prune, Stepwise):
    """Take out channels, repair what is left, and retrain, in one go or in several."""

    images: Annotated[int, Gt(1)] = 1024  # training images that criteria look at
    compare: PruneCompare | None = None

    def __post_init__(self) -> None:
        _check_pruning(self)


@option
class MaskAndRetrain(Mask, Stepwise):
    """Set single weights, or kernels (the taps that one output has of one input), to zero, and retrain the others."""

    compare: MaskCompare | None = None

    def __post_init__(self) -> None:
        _check_pruning(self)


PRUNINGS: dict[str, type[PruneAndRetrain] | type[MaskAndRetrain]] = {
    "channels": PruneAndRetrain,
    "weights": MaskAndRetrain,
    "kernels": MaskAndRetrain,
}


@option
class CKA:
    """Similarity of what layers make of the same images, drawn as a heat map."""

    layers: tuple[str, ...] = ("re:.*",)  # selectors, of both nets
    other: str | None = None  # model.pt, or the folder of a run, to compare with; default: the net with itself
    samples: Annotated[int, Ge(4)] = 2048  # test images, or all where there are fewer
    batch_size: Annotated[int, Ge(4)] = 256  # of which kernels are taken; a smaller last one is left out


@option
class IsometryOfNetworks(Isometry):
    """Jacobians of the network, and of others beside it, in one report."""

    # networks looked at beside, by a name for the tables: changes of the recipe, {train.init: sao}
    compare: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.compare:
            if not name or "/" in name:
                raise ValueError(f"compare: {name!r} cannot name a network; take a name without a slash")


@option
class SpectraOfNetwork(Spectra):
    """Spectra of a checkpoint, a state dict, or the recipe's model; and how alike its layers are."""

    sort: Literal["network", "alpha", "rand_distance", "stable_rank", "entropy", "spectral_norm", "norm"] = "alpha"
    cka: CKA | None = None  # needs data; {} takes its defaults
    isometry: IsometryOfNetworks | None = None  # needs data; {} takes its defaults
    input_shape: tuple[Annotated[int, Gt(0)], ...] = (3, 224, 224)  # of the recipe's model, if there are no data
    outputs: Annotated[int, Gt(0)] = 1000  # of the recipe's model, if there are no data


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
    train: FreshTraining | None = None
    finetune: Training | None = None
    fuse: FuseAndRetrain | None = None
    expand: ExpandAndTrain | None = None
    reconstruct: ReconstructAndRetrain | None = None
    prune: Annotated[Any, Kinds(PRUNINGS, default="channels")] | None = None  # channels, weights or kernels
    spectra: SpectraOfNetwork | None = None
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
