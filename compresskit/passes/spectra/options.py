"""What a recipe's `spectra` section says, and the conventions in which its words are meant."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from compresskit.numerics.spectra import power_law
from compresskit.numerics.spectra.power_law import PowerLaw
from compresskit.options import option

Floats = NDArray[np.float64]
Estimator = Literal["search", "median", "hill", "peak"]
Null = Literal["permuted", "gaussian", "none"]


@dataclass(frozen=True)
class Definitions:
    """Where the public tools and the document differ.

    kernel: factor of the eigenvalues of a convolution's taps. averaged: whether eigenvalues are of W^T W / N, not of
    W^T W. threshold: eigenvalues up to it are left out of power laws; None: those that rounding makes of zeros.
    null: what the random distance is taken from. rooted: whether it is the root of the divergence.
    """

    kernel: float
    averaged: bool
    threshold: float | None
    estimator: Estimator
    null: Null
    rooted: bool
    embeddings: bool


@option
class Spectra:
    """Spectra of the weights of each layer, power laws fitted to them, and the figures that sum them up."""

    layers: tuple[str, ...] | None = None  # selectors; default: all layers with a matrix of weights
    # weightwatcher: as its CPU path. tempbalance: alpha from the upper half, no embeddings. document: of W^T W / N
    definitions: Literal["weightwatcher", "tempbalance", "document"] = "weightwatcher"
    # search: the tail nearest to a power law; median, hill: the upper half; peak: about the peak of the density
    alpha: Estimator | None = None  # default: by the definitions
    convolutions: Literal["pooled", "matrix"] = "pooled"  # a matrix for each tap, or one (out, in x taps)
    # a grouped convolution as it is stored, or a matrix for each group
    groups: Literal["stored", "separate"] = "stored"
    threshold: Annotated[float, Ge(0)] | None = None  # eigenvalues up to it are left out of power laws
    few: Literal["unbiased", "likelihood"] = "unbiased"  # estimator for less than 20 eigenvalues, with alpha: search
    # of which density the search starts at the peak, with alpha: peak; logarithm: as tools do
    peak: Literal["logarithm", "value"] = "logarithm"
    min_eigenvalues: Annotated[int, Ge(2)] = 8  # layers of fewer are skipped, and said to be
    max_eigenvalues: Annotated[int, Gt(0)] = 15000  # layers of more are skipped, too
    max_side: Annotated[int, Gt(0)] = 50000  # of a matrix
    null: Null | None = None  # the random matrix that distances are taken from; default: by the definitions
    marchenko_pastur: bool = True  # fit the bulk of a random matrix, too

    @property
    def defined(self) -> Definitions:
        return DEFINITIONS[self.definitions]

    @property
    def random(self) -> Null:
        return self.null or self.defined.null

    def fit(self, values: Floats, longer: int) -> PowerLaw:
        """The power law of eigenvalues of matrices whose longer side is given. Raises power_law.NoTail."""
        threshold = self.defined.threshold if self.threshold is None else self.threshold
        if threshold is None:
            threshold = float(values.max()) * (longer * np.finfo(np.float64).eps) ** 2
        return self._estimator(values, threshold)

    @property
    def _estimator(self) -> Callable[[Floats, float], PowerLaw]:
        estimators: dict[Estimator, Callable[[Floats, float], PowerLaw]] = {
            "search": partial(power_law.search, unbiased=self.few == "unbiased"),
            "median": power_law.median,
            "hill": power_law.hill,
            "peak": partial(power_law.peak, logarithmic=self.peak == "logarithm"),
        }
        return estimators[self.alpha or self.defined.estimator]


DEFINITIONS = {
    "weightwatcher": Definitions(0.5, False, power_law.THRESHOLD, "search", "permuted", True, True),
    "tempbalance": Definitions(0.5, False, None, "median", "permuted", True, False),
    "document": Definitions(1.0, True, None, "search", "gaussian", False, True),
}
