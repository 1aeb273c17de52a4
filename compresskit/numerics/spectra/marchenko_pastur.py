"""The spectrum that a random matrix has, fitted to the bulk of a layer's; what lies beyond it are spikes.

Of an N x M matrix with N >= M, Q = N / M. Eigenvalues are scaled to a mean of 1 before they are fitted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskit.numerics.spectra.nelder_mead import nelder_mead

Floats = NDArray[np.float64]

_BANDWIDTH = 0.1  # of the triangular kernel, in units of the mean
_PLACES = 1000  # at which densities are compared
_THIN = 0.01  # density below which a place does not count
_BEYOND = 0.5  # of the largest value, that the places reach
_PENALTY = 1000.0**2  # a place, where bulk and law cannot be one
_GRID = np.arange(0.05, 2.0, 0.01)  # of sigma, in units of the one whose edge is the largest value


@dataclass(frozen=True)
class MarchenkoPastur:
    """sigma: of the entries, where eigenvalues have a mean of 1. lower, upper: edges of the bulk, as the values given.

    spikes: number of values beyond the upper edge and its Tracy-Widom width. soft_rank: upper edge / largest value.
    """

    sigma: float
    lower: float
    upper: float
    spikes: int
    soft_rank: float


class NoBulk(ValueError):
    """No Marchenko-Pastur law has its edges about the spectrum's mode; WeightWatcher reports the first of its grid."""


def fit(values: Floats, width: int, ratio: float) -> MarchenkoPastur:
    """The law whose density is nearest, in the sum of squares, to a triangular kernel estimate of the values'.

    p(x) = sqrt((b - x)(x - a)) Q / (2 pi sigma^2 x) between a, b = sigma^2 (1 -+ 1/sqrt Q)^2; for Q = 1, as
    WeightWatcher has it, sqrt(4 - s^2) / (pi sigma^2) in s = sqrt x. Sigma is taken from a grid, then refined by
    Nelder and Mead's method. A value beyond b + sqrt(b^(2/3) M^(-2/3) / sqrt Q) is a spike.
    values: eigenvalues, not all zero. width: M. ratio: Q.
    Raises NoBulk where, for every sigma, the mode or the largest place lies outside of the bulk.
    Source: Marchenko and Pastur 1967; the fit is that of WeightWatcher 0.7.7.
    """
    scale = len(values) / float(values.sum())
    x = np.sort(values) * scale
    places, density = _kernel_density(np.sqrt(x) if ratio == 1 else x)
    misfit = _Misfit(places, density, ratio)
    grid = _GRID * np.sqrt(x[-1]) / misfit.widest
    fits = grid[misfit.possible(grid)]
    if not len(fits):
        raise NoBulk("no random matrix has a spectrum about this one's mode")
    start = float(fits[misfit(fits[:, None]).argmin()])
    sigma = nelder_mead(lambda s: float(misfit(s)) if misfit.possible(s) else _PENALTY * len(places), start)
    upper = (sigma * misfit.widest) ** 2
    edge = upper + np.sqrt(upper ** (2 / 3) * width ** (-2 / 3) / np.sqrt(ratio))
    lower = (sigma * misfit.narrowest) ** 2
    return MarchenkoPastur(sigma, lower / scale, upper / scale, int((x > edge).sum()), float(upper / x[-1]))


class _Misfit:
    """Sum of the squared differences of a law's density from the spectrum's, at all places."""

    def __init__(self, places: Floats, density: Floats, ratio: float) -> None:
        self._places, self._density, self._ratio = places, density, ratio
        self._mode = float(places[density.argmax()])
        self._divisors = np.where(places > 0, places, 1)  # the law is 0 there
        self.widest, self.narrowest = 1 + 1 / np.sqrt(ratio), 1 - 1 / np.sqrt(ratio)

    def possible(self, sigma: Any) -> Any:
        """Whether the spectrum's mode lies in the bulk, and the bulk in the spectrum; for Q = 1 it is not asked."""
        if self._ratio == 1:
            return np.full(np.shape(sigma), True)
        upper, lower = (sigma * self.widest) ** 2, (sigma * self.narrowest) ** 2
        return (upper >= self._mode) & (upper <= self._places[-1]) & (lower <= self._mode)

    def __call__(self, sigma: Any) -> Floats:
        """() of a number, (n,) of a column of them."""
        places = self._places
        if self._ratio == 1:
            law = np.sqrt(np.maximum(4 - places**2, 0)) / (np.pi * sigma**2)
        else:
            a, b = (sigma * self.narrowest) ** 2, (sigma * self.widest) ** 2
            law = np.sqrt(np.maximum((b - places) * (places - a), 0)) * self._ratio
            law /= 2 * np.pi * sigma**2 * self._divisors
        law -= self._density
        return np.asarray(np.square(law, out=law).sum(-1))


def _kernel_density(x: Floats) -> tuple[Floats, Floats]:
    """Places and the triangular kernel density of the sorted values there, where it is not thin.

    f(g) = sum over |x - g| < h of (1 - |x - g| / h) / (n h), by prefix sums: O(n + places log n).
    """
    places = np.linspace(0, x[-1] + _BEYOND, _PLACES)
    sums = np.concatenate([[0.0], x.cumsum()])
    below, here, above = (np.searchsorted(x, places + step) for step in (-_BANDWIDTH, 0, _BANDWIDTH))
    rising = (here - below) * (_BANDWIDTH - places) + sums[here] - sums[below]
    falling = (above - here) * (_BANDWIDTH + places) - sums[above] + sums[here]
    density = (rising + falling) / (len(x) * _BANDWIDTH**2)
    thick = density > _THIN
    return places[thick], density[thick]
