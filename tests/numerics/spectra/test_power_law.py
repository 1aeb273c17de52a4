"""Power laws against the public tools' values, and against the plainest search there is."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.numerics.spectra import power_law
from compresskit.numerics.spectra.power_law import NoTail, hill, median, peak, search

SPECTRA = json.loads(Path(__file__).with_name("spectra_fixtures.json").read_text())["spectra"]
UNTIED = [spectrum for spectrum in SPECTRA if spectrum["name"] not in ("ties40", "allequal24")]  # or powerlaw differs
EXACT = {"rel": 1e-12, "abs": 1e-12}


def values(spectrum: dict) -> np.ndarray:
    return np.array(spectrum["evals"])


def plain(found: np.ndarray) -> tuple[float, float, int]:
    """Distance, alpha and tail of the nearest tail, one tail after another."""
    x = np.sort(found)
    best = (math.inf, math.nan, 0)
    for start in range(len(x) - 1):
        tail = x[start:]
        n = len(tail)
        alpha = 1 + n / sum(math.log(v / tail[0]) for v in tail) if tail[-1] > tail[0] else math.inf
        law = [1 - (v / tail[0]) ** (1 - alpha) for v in tail]
        distance = max(abs(f - j / n) for j, f in enumerate(law)) if alpha > 1 else 1
        if distance < best[0] - 1e-12:
            best = distance, alpha, n
    return best


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: spectrum["name"])
def test_searched_tails_are_those_of_weightwatcher(spectrum):
    found, expected = search(values(spectrum)), spectrum["ww"]
    assert found.alpha == pytest.approx(float(expected["alpha"]), **EXACT)
    assert found.xmin == pytest.approx(expected["xmin"], **EXACT)
    assert found.distance == pytest.approx(expected["D"], **EXACT)
    if len(values(spectrum)) >= power_law.SHORTEST:  # else its deviation is negative
        assert found.sigma == pytest.approx(float(expected["sigma"]), **EXACT)


@pytest.mark.parametrize("spectrum", UNTIED, ids=lambda spectrum: spectrum["name"])
def test_without_the_rule_for_few_values_tails_are_those_of_powerlaw(spectrum):
    expected = spectrum["powerlaw15"]
    found = search(values(spectrum), unbiased=False)
    assert (found.alpha, found.xmin, found.distance) == pytest.approx(
        (expected["alpha"], expected["xmin"], expected["D"]), **EXACT
    )


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: spectrum["name"])
def test_fixed_tails_are_those_of_tempbalance_and_of_its_document(spectrum):
    x, expected = values(spectrum), spectrum["tb_median"]
    found = median(x, power_law.THRESHOLD)
    assert found.alpha == pytest.approx(float(expected["alpha"]), **EXACT)
    assert found.distance == pytest.approx(expected["D"], **EXACT)
    kept = np.sort(x[x > power_law.THRESHOLD])
    assert found.xmin == kept[expected["i"]]
    assert hill(x, power_law.THRESHOLD).alpha == pytest.approx(float(spectrum["paper_hill_half"]["alpha"]), **EXACT)
    assert hill(x, power_law.THRESHOLD).tail == spectrum["paper_hill_half"]["k"]


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: spectrum["name"])
def test_tails_about_the_peak_are_those_of_weightwatcher(spectrum):
    expected = spectrum["xmin_peak_ww"]
    if expected["alpha"] is None:
        with pytest.raises(NoTail, match="about the peak"):
            peak(values(spectrum))
        return
    found = peak(values(spectrum))
    assert (found.alpha, found.xmin, found.distance) == pytest.approx(
        (expected["alpha"], expected["xmin"], expected["D"]), **EXACT
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 400), st.integers(0, 2**32 - 1), st.sampled_from(["pareto", "gaussian", "ties", "spike"]))
def test_the_search_finds_what_the_plainest_one_finds(count, seed, kind):
    draws = np.random.default_rng(seed)
    x = draws.pareto(2.5, count) + 0.1 if kind in ("pareto", "spike") else draws.normal(size=count) ** 2 + 1e-3
    if kind == "ties":
        x = np.round(x, 1) + 0.1
    if kind == "spike":
        x[0] = 1e6
    distance, alpha, tail = plain(x)
    found = search(x)
    assert found.distance == pytest.approx(distance, abs=1e-12)
    assert (found.alpha, found.tail) == (pytest.approx(alpha, rel=1e-9), tail)


def test_more_candidates_than_a_block_holds_change_nothing(monkeypatch):
    x = np.random.default_rng(0).pareto(2, 500) + 1
    whole = search(x)
    monkeypatch.setattr(power_law, "_BLOCK", 700)
    assert search(x) == whole


def test_a_power_law_is_found_again():
    x = (1 - np.random.default_rng(1).random(20_000)) ** (-1 / 2.5)  # alpha = 3.5 from 1 on
    found = search(np.concatenate([x, np.random.default_rng(2).random(3000)]))
    assert found.alpha == pytest.approx(3.5, abs=4 * found.sigma)
    assert found.xmin == pytest.approx(1, abs=0.2)
    assert hill(x).alpha == pytest.approx(3.5, abs=0.15)
    assert median(x).alpha == pytest.approx(3.5, abs=0.15)


def test_scale_matters_to_xmin_alone():
    x = np.random.default_rng(3).pareto(2, 300) + 0.5
    one, other = search(x), search(1000 * x)
    assert (other.alpha, other.xmin, other.distance) == pytest.approx((one.alpha, 1000 * one.xmin, one.distance))


def test_small_values_are_left_out():
    x = np.random.default_rng(4).pareto(2, 100) + 0.5
    assert search(np.concatenate([np.zeros(40), np.full(9, power_law.THRESHOLD), x])) == search(x)


@pytest.mark.parametrize("fit", [search, median, hill, peak])
def test_too_few_values_are_said(fit):
    with pytest.raises(NoTail, match="1 of 3 eigenvalues"):
        fit(np.array([0.0, 0.0, 1.0]))


def test_the_lower_end_of_the_peak_can_be_a_value():
    x = np.concatenate([np.geomspace(0.001, 0.5, 30), np.geomspace(1, 1.1, 50), np.geomspace(1.2, 90, 60)])
    assert peak(x, logarithmic=False).xmin >= 0.95
    assert peak(x, logarithmic=False).xmin <= 1.65
