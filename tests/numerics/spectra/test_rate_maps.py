"""Shares of the learning rate against the document's formulas, and their laws over every map."""

import math

import numpy as np
import pytest

from compresskit.numerics.spectra.rate_maps import MAPS, disturbed, factors

ALPHAS = np.array([3.0, 2.0, 6.5, 4.0, 2.5])
FORMULAS = {  # of one value
    "linear": lambda a: a,
    "square": lambda a: a * a,
    "cube": lambda a: a**3,
    "sqrt": math.sqrt,
    "cbrt": lambda a: a ** (1 / 3),
    "fourth-root": lambda a: math.sqrt(math.sqrt(a)),
    "log2": lambda a: math.log(a) / math.log(2),
    "softmax": math.exp,
}
EVERY = [*MAPS, "bounded"]


@pytest.mark.parametrize("how", FORMULAS)
def test_factors_are_n_times_the_share_of_the_mapped_metric(how):
    mapped = [FORMULAS[how](float(alpha)) for alpha in ALPHAS]
    expected = [len(ALPHAS) * value / sum(mapped) for value in mapped]
    np.testing.assert_allclose(factors(ALPHAS, how), expected, rtol=1e-12)


def test_every_map_has_its_formula_or_a_test_below():
    assert set(MAPS) == {*FORMULAS, "negative-powers-of-two"}


def test_negative_powers_of_two_go_by_rank():
    expected = 5 * np.array([1 / 8, 1 / 32, 1 / 2 + 1 / 32, 1 / 4, 1 / 16])
    np.testing.assert_allclose(factors(ALPHAS, "negative-powers-of-two"), expected, rtol=1e-15)
    np.testing.assert_allclose(factors(ALPHAS**3, "negative-powers-of-two"), expected, rtol=1e-15)


def test_tempbalance_goes_from_one_bound_to_the_other():
    np.testing.assert_allclose(factors(ALPHAS, "bounded"), 0.5 + (ALPHAS - 2) / 4.5, rtol=1e-12)
    found = factors(ALPHAS, "bounded", bounds=(0.2, 3.0), inverse=True)
    np.testing.assert_allclose(found, 3.0 - 2.8 * (ALPHAS - 2) / 4.5, rtol=1e-12)


@pytest.mark.parametrize("how", EVERY)
def test_laws_of_every_map(how):
    found = factors(ALPHAS, how)
    assert (np.argsort(found) == np.argsort(ALPHAS)).all()
    assert (np.argsort(factors(ALPHAS, how, inverse=True)) == np.argsort(-ALPHAS)).all() or how == "log2"
    if how != "bounded":
        assert found.mean() == pytest.approx(1)
    np.testing.assert_array_equal(factors(np.full(4, 3.3), how), np.ones(4))
    clipped = factors(ALPHAS, how, bounds=(0.8, 1.1))
    assert (clipped >= 0.8 - 1e-12).all()
    assert (clipped <= 1.1 + 1e-12).all()
    signed = factors(np.array([-2.0, 0.5, 1.0]), how)  # logarithms of norms
    assert (signed >= 0).all()
    assert (np.diff(signed) > 0).all()


def test_metrics_that_are_not_positive_start_from_one():
    np.testing.assert_allclose(factors(np.array([-2.0, 0.0, 1.0]), "linear"), np.array([1, 3, 4]) * 3 / 8)


def test_large_metrics_do_not_overflow():
    assert factors(np.array([1.0, 2000.0]), "softmax").tolist() == [0.0, 2.0]


@pytest.mark.parametrize("noise", ["normal-alpha", "normal-rate", "exponential"])
def test_noise_follows_its_seed_and_has_no_negative_rates(noise):
    draw = [disturbed(ALPHAS, noise, 0.1, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])
    assert min(draw[0].min(), draw[2].min()) >= 0


def test_noise_has_the_distributions_of_the_document():
    generator = np.random.default_rng(0)
    normal = np.array([disturbed(ALPHAS + 5, "normal-alpha", 0.1, generator) for _ in range(4000)])
    np.testing.assert_allclose(normal.mean(0), ALPHAS + 5, atol=0.06)
    np.testing.assert_allclose(normal.std(0), 1, atol=0.05)
    rates = np.array([disturbed(ALPHAS, "normal-rate", 7.0, generator) for _ in range(4000)])
    assert (np.argsort(rates, axis=1) == np.argsort(ALPHAS)).all()  # the largest draw to the largest metric
    assert rates.mean() == pytest.approx(7, abs=0.05)
    many = np.full(100_000, 30.0) + np.linspace(0, 1e-6, 100_000)
    exponential = disturbed(many, "exponential", 0.1, generator)
    assert exponential.mean() == pytest.approx(30, rel=0.02)
    assert exponential.std() == pytest.approx(math.hypot(30, 1), rel=0.02)  # (2.31)
    np.testing.assert_array_equal(disturbed(ALPHAS, "none", 0.1, generator), ALPHAS)


@pytest.mark.parametrize("how", [name for name in FORMULAS if name not in ("log2",)])
def test_a_zero_among_others_is_mapped_as_the_formula_has_it(how):
    """It moves no other value."""
    values = np.array([0.0, 0.5, 3.0])
    mapped = [FORMULAS[how](float(value)) for value in values]
    np.testing.assert_allclose(factors(values, how), [3 * value / sum(mapped) for value in mapped], rtol=1e-12)


def test_draws_below_zero_have_no_rate_and_change_none():
    """(2.28) with a small rate, where some of the draws are cut off at 0."""
    drawn = disturbed(ALPHAS, "normal-rate", 0.1, np.random.default_rng(0))
    assert (drawn == 0).any()
    np.testing.assert_allclose(factors(drawn, "linear"), len(drawn) * drawn / drawn.sum(), rtol=1e-12)


def test_zero_has_no_inverse():
    with pytest.raises(ValueError, match="0 has no inverse"):
        factors(np.array([0.0, 1.0]), "linear", inverse=True)
