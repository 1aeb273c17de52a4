"""Power laws fitted to the tails of spectra: p(x) ~ x^-alpha for x >= xmin.

Values are eigenvalues lambda; those up to `threshold` are left out of every fit, since a pruned or rank-deficient
layer has zeros. N of them are left, x_0 <= ... <= x_{N-1}; a tail that starts at x_i has n = N - i values, with x_i.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

THRESHOLD = 1e-5  # absolute, of WeightWatcher
FEW = 20  # values; WeightWatcher fits fewer of them by the unbiased estimator
SHORTEST = 8  # tail that it takes then
_BINS = 100  # of the histogram whose peak starts a tail
_STEPS = (128, 24, 4, 1)  # every so many values at which distances are taken, until they decide
_LIKELY = 16  # candidates that are measured whole at each step
_BLOCK = 1 << 16  # distances at a time: they stay in a core's cache
_TIE = 1e-9  # distances nearer to one another than this are compared as WeightWatcher rounds them


@dataclass(frozen=True)
class PowerLaw:
    """alpha: exponent. xmin: where the tail starts. distance: Kolmogorov-Smirnov D of the tail from the law.

    tail: number of values in it. sigma: standard error of alpha, (alpha - 1) / sqrt(tail).
    """

    alpha: float
    xmin: float
    distance: float
    tail: int

    @property
    def sigma(self) -> float:
        return (self.alpha - 1) / float(np.sqrt(self.tail))


class NoTail(ValueError):
    """There are too few values for a power law; the message says how many."""


def search(values: Floats, threshold: float = THRESHOLD, *, unbiased: bool = True) -> PowerLaw:
    """The tail nearest to a power law, of all that start at a value; its alpha by maximum likelihood:

    alpha = 1 + n / sum_{j >= i} ln(x_j / x_i), D = max_j |1 - (x_j / x_i)^(1 - alpha) - (j - i) / n|, and D = 1 where
    alpha <= 1; the first of equal D counts. With fewer than 20 values, `unbiased` takes n - 1 for n, and only tails of
    8 values at least (all values where there are fewer). Raises NoTail for less than 2 values.
    Source: Clauset, Shalizi and Newman 2009, as WeightWatcher 0.7.7 computes it.
    """
    x = _sorted(values, threshold)
    short = unbiased and len(x) < FEW
    starts = np.arange(max(1, len(x) - SHORTEST + 1) if short else len(x) - 1)
    return _nearest(x, starts, less=int(short))


def median(values: Floats, threshold: float = 0.0, part: float = 2.0) -> PowerLaw:
    """The tail from the value number int(N / part) on: TempBalance's estimator (Zhou et al. 2023, its code)."""
    x = _sorted(values, threshold)
    return _at(x, min(int(len(x) / part), len(x) - 1))


def hill(values: Floats, threshold: float = 0.0) -> PowerLaw:
    """Hill's estimator of the k = N // 2 largest: 1 + k / sum_j ln(x_j / x_{N-k-1}) (TempBalance, its eq. 2)."""
    x = _sorted(values, threshold)
    k = len(x) // 2
    spread = float(np.log(x[-k:]).sum() - k * np.log(x[-k - 1]))
    alpha = 1 + k / spread if spread > 0 else np.inf
    return PowerLaw(alpha, float(x[-k - 1]), _distance(x[-k - 1 :], alpha), k)


def peak(values: Floats, threshold: float = THRESHOLD, *, logarithmic: bool = True) -> PowerLaw:
    """The nearest tail that starts about the peak e of the histogram of log10 x, from 0.95 e to 1.5 e.

    logarithmic: the lower end is log10(0.95 e), which WeightWatcher's xmin_peak and TempBalance's fix-finger take for a
    value; so it is nearly no limit. Of equal values the first alone starts a tail, and the last of the range, as there,
    none. Raises NoTail if none starts there.
    """
    x = _sorted(values, threshold)
    counts, edges = np.histogram(np.log10(x), bins=_BINS)
    place = 0.95 * 10 ** edges[counts.argmax()]
    lowest, highest = (np.log10(place) if logarithmic else place), 1.5 * 10 ** edges[counts.argmax()]
    starts = np.unique(x, return_index=True)[1]
    starts = starts[(x[starts] >= lowest) & (x[starts] <= highest)][:-1]
    if not len(starts):
        raise NoTail(f"no tail starts between {max(lowest, 0):.3g} and {highest:.3g}, about the peak of the spectrum")
    return _nearest(x, starts)


def _sorted(values: Floats, threshold: float) -> Floats:
    kept = np.sort(values[values > threshold]).astype(np.float64, copy=False)
    if len(kept) < 2:
        raise NoTail(f"{len(kept)} of {len(values)} eigenvalues exceed {threshold:g}, a power law takes 2 at least")
    return kept


def _nearest(x: Floats, starts: NDArray[np.intp], less: int = 0) -> PowerLaw:
    """Of tails that start at these numbers the nearest to its power law, with `less` values less in the estimator."""
    logs = np.log(x)
    tails = len(x) - starts
    spreads = (logs[::-1].cumsum()[::-1])[starts] - tails * logs[starts]
    with np.errstate(divide="ignore"):
        alphas = 1 + (tails - less) / np.maximum(spreads, 0)
    nearest = _least(logs, starts, alphas)
    return min((_at(x, int(start), less) for start in starts[nearest]), key=lambda law: law.distance)


def _least(logs: Floats, starts: NDArray[np.intp], alphas: Floats) -> NDArray[np.intp]:
    """Numbers of the candidates of least distance, or within rounding of it, by branch and bound.

    Distances at every s-th value of a tail bound the whole one from below, so what exceeds the whole distance of any
    other cannot be least, and is dropped before more values are looked at. The few that look best are measured whole.
    """
    left = np.arange(len(starts))
    least = np.inf
    for step in _STEPS:
        found = _distances(logs, starts[left], alphas[left], step)
        likely = np.sort(left[found.argsort()[:_LIKELY]])
        least = min(least, _distances(logs, starts[likely], alphas[likely], 1).min())
        left = left[found <= least + _TIE]
    return left


def _distances(logs: Floats, starts: NDArray[np.intp], alphas: Floats, step: int) -> Floats:
    """Largest |F - E| of each tail over every `step`-th value and the last; 1 where alpha <= 1."""
    grid = np.append(np.arange(0, len(logs) - 1, step), len(logs) - 1)
    found = np.empty(len(starts))
    rows = max(1, _BLOCK // len(grid))
    for first in range(0, len(starts), rows):
        start, alpha = starts[first : first + rows, None], alphas[first : first + rows, None]
        columns = grid[grid >= start[0, 0]]
        with np.errstate(invalid="ignore"):  # alpha of equal values is infinite
            powers = np.minimum(
                (1 - alpha) * (logs[columns] - logs[start]), 0
            )  # above 0 before the start, not looked at
        law = 1 - np.nan_to_num(np.exp(powers), nan=1.0)
        difference = np.abs(law - (columns - start) / (len(logs) - start))
        found[first : first + rows] = np.where(columns >= start, difference, 0).max(1)
    found[alphas <= 1] = 1
    return found


def _at(x: Floats, start: int, less: int = 0) -> PowerLaw:
    """The tail from this number on, its sums and powers taken as WeightWatcher takes them."""
    tail = x[start:]
    logs = np.log(tail)
    spread = float(np.sum(logs) - len(tail) * logs[0])
    alpha = 1 + (len(tail) - less) / spread if spread > 0 else np.inf
    return PowerLaw(alpha, float(tail[0]), _distance(tail, alpha), len(tail))


def _distance(tail: Floats, alpha: float) -> float:
    """D of a tail, whose values rise, from the law that starts at its first one."""
    if alpha <= 1:
        return 1.0
    law = 1 - (tail / tail[0]) ** (1 - alpha)
    return float(np.abs(law - np.arange(len(tail)) / len(tail)).max())
