"""Debiasing, factorisation and encodings against plain formulas."""

import math

import numpy as np
import pytest
import torch

from compresskit.numerics.group_lasso.problem import Part
from compresskit.numerics.least_squares.low_rank import factorise
from compresskit.numerics.least_squares.solvers import Samples
from compresskit.numerics.selection.encoding import csr_bits, raw_bits, selection_bits
from compresskit.numerics.selection.refit import refit, squared_error

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(500, 12)) @ RANDOM.normal(size=(12, 12)) + RANDOM.normal(size=12)
Y = X @ RANDOM.normal(size=(12, 5)) + RANDOM.normal(size=(500, 5))


def centred_part(x, y, groups):
    x, y = (torch.from_numpy(value - value.mean(0)) for value in (x, y))
    return Part(x.T @ x / len(x), y.T @ x / len(x), torch.as_tensor(groups))


def test_the_refit_is_least_squares_on_the_columns_kept():
    part = centred_part(X, Y, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    weight, rank, _ = refit(part, torch.tensor([True, False, True, False]))
    columns = [0, 1, 2, 6, 7, 8]
    expected = np.linalg.lstsq((X - X.mean(0))[:, columns], Y - Y.mean(0), rcond=None)[0].T
    np.testing.assert_allclose(weight[:, columns], expected, rtol=1e-9)
    assert rank == 6
    assert not weight[:, [3, 4, 5, 9, 10, 11]].any()
    residual = Y - Y.mean(0) - (X - X.mean(0))[:, columns] @ expected.T
    variance = float(np.square(Y - Y.mean(0)).sum() / 500)
    assert squared_error(part, variance, weight) == pytest.approx(np.square(residual).sum() / 500)


def test_the_refit_has_minimum_norm_where_inputs_are_copies():
    twice = np.concatenate([X[:, :3], X[:, :3]], axis=1)
    part = centred_part(twice, Y, range(6))
    weight, rank, _ = refit(part, torch.ones(6, dtype=torch.bool))
    assert rank == 3
    np.testing.assert_allclose(weight[:, :3], weight[:, 3:], atol=1e-9)


def test_a_ridge_that_is_known_is_not_looked_for():
    random = np.random.default_rng(2)
    x = random.normal(size=(60, 40))
    y = x @ random.normal(size=(40, 3)) / 9 + 3 * random.normal(size=(60, 3))
    part = centred_part(x, y, range(40))
    kept = torch.ones(40, dtype=torch.bool)
    found = refit(part, kept, Samples(60, float(np.square(y - y.mean(0)).sum() / 60)))
    assert found.ridge > 0
    again = refit(part, kept, ridge=found.ridge)
    torch.testing.assert_close(again.weight, found.weight)
    assert again.ridge == found.ridge


def test_few_samples_are_not_fitted_to_the_noise():
    """With next to as many inputs as samples, least squares is far from the truth on new ones; the ridge is near it."""
    random = np.random.default_rng(1)
    truth = random.normal(size=(3, 90)) / 9
    x = random.normal(size=(100, 90))
    part = centred_part(x, x @ truth.T + random.normal(size=(100, 3)), range(90))
    variance = float(np.square(x @ truth.T).sum() / 100)
    kept = torch.ones(90, dtype=torch.bool)
    wrong = [float((refit(part, kept, samples)[0] - torch.from_numpy(truth)).square().sum()) for samples in
             (None, Samples(100, variance + 3))]  # fmt: skip
    assert wrong[0] > 10
    assert wrong[1] < 3
    many = refit(part, kept, Samples(10**6, variance))[0]
    torch.testing.assert_close(many, refit(part, kept)[0])


@pytest.mark.parametrize("share", [1e-12, 0.02, 0.3, 1.0])
def test_factors_lose_what_they_may_and_have_the_least_rank(share):
    part = centred_part(X, Y, range(12))
    weight, bias = torch.from_numpy(RANDOM.normal(size=(7, 12))), torch.from_numpy(RANDOM.normal(size=7))
    mean = torch.from_numpy(X.mean(0))
    outputs = X @ weight.numpy().T + bias.numpy()
    variance = np.square(outputs - outputs.mean(0)).sum() / 500
    found = factorise(weight, bias, mean, part.cxx, share * variance)
    approximated = X @ (found.second @ found.first).numpy().T + found.bias.numpy()
    error = np.square(outputs - approximated).sum() / 500
    assert error == pytest.approx(found.error, rel=1e-8, abs=1e-9 * variance)
    assert error <= share * variance * (1 + 1e-9) + 1e-9 * variance
    np.testing.assert_allclose(approximated.mean(0), outputs.mean(0), atol=1e-9)
    spectrum = np.linalg.svd(outputs - outputs.mean(0), compute_uv=False) ** 2 / 500  # Eckart and Young
    rank = len(found.first)
    assert found.error == pytest.approx(spectrum[rank:].sum(), abs=1e-9 * variance)
    assert rank == 1 or spectrum[rank - 1 :].sum() > share * variance


def test_bits_of_encodings():
    weight = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 3.0]])
    assert csr_bits(weight) == 3 * (2 + 32) + 2 * 2  # four columns: two bits
    assert csr_bits(weight.view(2, 2, 2)) == csr_bits(weight)
    assert csr_bits(torch.zeros(7)) == 7 * 32
    assert raw_bits(266_610) == 8_531_520  # LeNet-300-100: the document's 1.02 MiB
    assert raw_bits(266_610) / 8 / 2**20 == pytest.approx(1.02, abs=5e-3)
    for inputs, kept in ((784, 443), (10, 0), (10, 10), (20, 7)):
        assert selection_bits(inputs, kept) == pytest.approx(math.log2(math.comb(inputs, kept)), abs=1e-9)
