"""Marchenko-Pastur laws against WeightWatcher's fits, and on matrices that are random indeed."""

import json
from pathlib import Path

import numpy as np
import pytest

from compresskit.numerics.spectra import marchenko_pastur
from compresskit.numerics.spectra.marchenko_pastur import NoBulk, fit

SPECTRA = json.loads(Path(__file__).with_name("spectra_fixtures.json").read_text())["spectra"]
FITTED = [(spectrum, ratio) for spectrum in SPECTRA for ratio in (1.5, 1) if f"mp_Q{ratio}" in spectrum]


@pytest.mark.parametrize(("spectrum", "ratio"), FITTED, ids=[f"{s['name']}, Q {q}" for s, q in FITTED])
def test_fits_are_those_of_weightwatcher(spectrum, ratio):
    x, expected = np.array(spectrum["evals"]), spectrum[f"mp_Q{ratio}"]
    if expected["mp_softrank"] == 0.0025:  # its grid's first point: no law fits
        with pytest.raises(NoBulk):
            fit(x, len(x), ratio)
        return
    found = fit(x, len(x), ratio)
    assert found.upper == pytest.approx(expected["bulk_max"], rel=1e-10)
    assert found.soft_rank == pytest.approx(expected["mp_softrank"], rel=1e-10)
    assert found.spikes == expected["num_spikes"]
    if (spectrum["name"], ratio) != ("n25_gauss", 1.5):  # its sigma is not the one that gives its upper edge
        assert found.sigma == pytest.approx(expected["sigma_mp"], rel=1e-10)
        assert found.lower == pytest.approx(expected["bulk_min"], rel=1e-10)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_densities_are_sums_of_triangles(count):
    x = np.sort(np.random.default_rng(count).pareto(2, count))
    places, density = marchenko_pastur._kernel_density(x)
    apart = np.abs(places[:, None] - x) / 0.1
    np.testing.assert_allclose(density, np.clip(1 - apart, 0, None).sum(1) / (0.1 * count), rtol=1e-9, atol=1e-12)
    assert (density > 0.01).all()


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_random_matrix_is_all_bulk_and_spikes_stand_out(scale):
    draws = np.random.default_rng(0)
    matrix = scale * draws.normal(size=(600, 300))
    found = fit(np.linalg.svd(matrix, compute_uv=False) ** 2, 300, 2.0)
    edge = (1 + np.sqrt(0.5)) ** 2 * 600 * scale**2
    assert found.upper == pytest.approx(edge, rel=0.05)
    assert found.lower == pytest.approx((1 - np.sqrt(0.5)) ** 2 * 600 * scale**2, rel=0.05)
    assert found.spikes == 0
    left, right = draws.normal(size=(600, 3)), draws.normal(size=(3, 300))
    spiked = matrix + 0.5 * scale * left @ right
    assert fit(np.linalg.svd(spiked, compute_uv=False) ** 2, 300, 2.0).spikes == 3


@pytest.mark.parametrize(
    ("ratio", "sigma", "possible"),
    [(4.0, 1.0, True), (4.0, 0.9, False), (4.0, 1.4, False), (100.0, 1.5, True), (100.0, 1.6, False), (1.0, 9.0, True)],
    ids=["about the mode", "below it", "beyond the spectrum", "narrow", "above the mode", "square"],
)
def test_a_bulk_lies_about_the_mode_and_in_the_spectrum(ratio, sigma, possible):
    places = np.linspace(0, 4, 101)
    misfit = marchenko_pastur._Misfit(places, np.exp(-((places - 2) ** 2)), ratio)
    assert bool(misfit.possible(sigma)) == possible
    assert misfit.possible(np.array([sigma, sigma])).tolist() == [possible] * 2
