"""Densities of samples on a line."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NARROW = 1e-12  # samples that differ by less have no density


def density(samples: Sequence[float], points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places and the Gaussian kernel density of the samples there, with Scott's bandwidth n^(-1/5) x their deviation.

    The places reach three bandwidths beyond the samples on both sides. Raises ValueError for fewer than two samples, or
    equal ones.
    """
    from scipy.stats import gaussian_kde  # a third of a second, which only plots of densities should wait for

    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) < NARROW:
        raise ValueError("a density needs two samples that differ; draw more")
    kernel = gaussian_kde(values)
    margin = 3 * float(np.sqrt(kernel.covariance[0, 0]))
    places = np.linspace(values.min() - margin, values.max() + margin, points)
    return places, kernel(places)
