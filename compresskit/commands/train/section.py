"""The section `train` of a recipe: training/options.py, with how a new network starts, and networks beside it."""

from dataclasses import field
from itertools import product
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

from compresskit.options import option
from compresskit.passes.initialise.sparse_options import INITIALISATIONS, Ramanujan
from compresskit.passes.prune.mask_options import Masking
from compresskit.recipes.hints import Kinds
from compresskit.training.analyses.landscape import Landscape
from compresskit.training.options import Training

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
class Memorisation:
    """What a net makes of random labels: each is trained again at each of these levels (ExpandNets, Table 7)."""

    label_noise: tuple[Annotated[float, Gt(0), Lt(1)], ...] = (0.2, 0.5, 0.8)  # see data.label_noise

    def __post_init__(self) -> None:
        if not self.label_noise or len(set(self.label_noise)) < len(self.label_noise):
            raise ValueError(f"label_noise: {list(self.label_noise)}; give one level or more, each once")


@option
class Grid:
    """Networks trained beside: one for each row with each column, both changes of the recipe as on the command line."""

    # SAO: {train.init: {kind: sao, degree: 4}}; keys of `model`, `train` and `data.augment`
    rows: dict[str, dict[str, Any]]
    # N = 200: {model.depth: 200}; of a list of such mappings each column of one with each of the next
    columns: dict[str, dict[str, Any]] | tuple[dict[str, dict[str, Any]], ...] = field(default_factory=dict)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)  # of one alone: "SAO, N = 200": {train.epochs: 20}

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows: name one at least")
        names = [name_of_cell(row, column) for row in self.rows for column in self.changes_of_columns or ("",)]
        if strange := [name for name in self.cells if name not in names]:
            raise ValueError(f"cells: {strange[0]!r} is none of {', '.join(map(repr, names))}")

    @property
    def changes_of_columns(self) -> dict[str, dict[str, Any]]:
        """By name; those of several mappings are joined, `N = 200, W = 64`, and later ones count where keys meet."""
        axes = self.columns if isinstance(self.columns, tuple) else (self.columns,)
        found: dict[str, dict[str, Any]] = {}
        for columns in product(*(axis.items() for axis in axes)):
            changes: dict[str, Any] = {}
            for _, more in columns:
                changes |= more
            found[", ".join(name for name, _ in columns)] = changes
        return found


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
