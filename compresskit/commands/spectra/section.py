"""The section `spectra` of a recipe: passes/spectra/options.py, with similarity of layers and isometry."""

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from compresskit.numerics.spectra.cka import Estimator
from compresskit.options import option
from compresskit.passes.isometry.options import Isometry
from compresskit.passes.spectra.options import Spectra
from compresskit.passes.spectra.outputs import Outputs


@option
class CKA:
    """Similarity of what layers make of the same images, drawn as a heat map."""

    outputs: tuple[Outputs, ...] = ("layers",)  # compared: of layers, norms, activations, sums, blocks
    layers: tuple[str, ...] = ("re:.*",)  # selectors of their names, of both nets; a sum's is that of its node
    other: str | None = None  # model.pt, or the folder of a run, to compare with; default: the net with itself
    samples: Annotated[int, Ge(4)] = 2048  # test images, or all where there are fewer
    batch_size: Annotated[int, Ge(4)] = 256  # of which kernels are taken; a smaller last one is left out
    estimator: Estimator = "unbiased"  # of HSIC; biased: tr(KHLH) / (n - 1)^2, the larger the smaller batches are

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError("outputs: name one kind at least of layers, norms, activations, sums and blocks")


@option
class IsometryOfNetworks(Isometry):
    """Jacobians of the network, and of others beside it, in one report."""

    # networks looked at beside, by a name for the tables: changes of the recipe, {train.init: sao}, as training would
    # start them; or a model.pt or the folder of a run, runs/x, as it is
    compare: dict[str, dict[str, Any] | str] = field(default_factory=dict)
    grid: str | None = None  # folder of a run of `train.compare`: all of its trained networks are looked at, too

    def __post_init__(self) -> None:
        for name in self.compare:
            if not name or "/" in name:
                raise ValueError(f"compare: {name!r} cannot name a network; take a name without a slash")


@option
class SpectraOfNetwork(Spectra):
    """Spectra of a checkpoint, a state dict, or the recipe's model; and how alike its layers are."""

    # what the table is sorted by; network: the order of the layers
    sort: Literal["network", "alpha", "rand_distance", "stable_rank", "entropy", "spectral_norm", "norm"] = "alpha"
    cka: CKA | None = None  # needs data; {} takes its defaults
    # eigenvalues of the graphs of masks and of layers in groups, with the bound of Ramanujan graphs
    graphs: bool = False
    isometry: IsometryOfNetworks | None = None  # needs data; {} takes its defaults
    input_shape: tuple[Annotated[int, Gt(0)], ...] = (3, 224, 224)  # of the recipe's model, if there are no data
    outputs: Annotated[int, Gt(0)] = 1000  # of the recipe's model, if there are no data
