"""Kernel densities against a sum of Gaussians."""

import numpy as np
import pytest

from compresskit.numerics.kernel_density import density


def test_density_is_the_mean_of_gaussians():
    samples = [0.1, 0.4, 0.35, -0.2]
    places, values = density(samples, points=400)
    bandwidth = np.std(samples, ddof=1) * len(samples) ** -0.2
    slow = [
        np.mean([np.exp(-(((x - s) / bandwidth) ** 2) / 2) / bandwidth / np.sqrt(2 * np.pi) for s in samples])
        for x in places
    ]
    np.testing.assert_allclose(values, slow, atol=1e-12)
    assert np.trapezoid(values, places) == pytest.approx(1, abs=5e-3)  # three bandwidths hold 99.7 %


@pytest.mark.parametrize("samples", [[0.5, 0.5], [0.5], []])
def test_what_has_no_density_is_refused(samples):
    with pytest.raises(ValueError, match="two samples that differ"):
        density(samples)
