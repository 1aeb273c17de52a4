"""Least squares row by row, against numpy on the data of each row, and the laws of it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from compresskit.errors import ConvergenceError
from compresskit.numerics.least_squares import rows as module
from compresskit.numerics.least_squares.rows import solve_rows
from compresskit.numerics.least_squares.solvers import CUT, Samples, best_shift, eigenpairs

FEATURES, OUTPUTS, SAMPLES = 20, 12, 4000  # plenty of samples for all of the inputs


def data(samples: int = SAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(samples, in) correlated inputs and (samples, out) outputs, both centred."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, FEATURES)) @ random.normal(size=(FEATURES, FEATURES))
    y = x @ random.normal(size=(FEATURES, OUTPUTS)) + random.normal(size=(samples, OUTPUTS))
    return x - x.mean(0), y - y.mean(0)


def moments(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    count = len(x)
    return tuple(map(torch.from_numpy, (x.T @ x / count, y.T @ x / count, (y**2).mean(0))))


def supports(seed: int = 1) -> Tensor:
    """Of all sizes, two of them twice, one empty and one whole."""
    found = torch.rand(OUTPUTS, FEATURES, generator=torch.Generator().manual_seed(seed)) < torch.linspace(
        0.1, 0.9, OUTPUTS
    ).unsqueeze(1)
    found[3], found[7], found[0], found[-1] = found[4], found[8], False, True
    return found


def by_rows(x: np.ndarray, y: np.ndarray, support: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weight and error of each row, by numpy's least squares on the samples of its inputs."""
    weight = np.zeros((y.shape[1], x.shape[1]))
    for row, own in enumerate(support.numpy()):
        weight[row, own] = np.linalg.lstsq(x[:, own], y[:, row], rcond=None)[0]
    return weight, ((y - x @ weight.T) ** 2).mean(0)


@pytest.mark.parametrize("room", [1, 1000, module.BATCH])
def test_equals_numpy_on_each_row(monkeypatch, room):
    monkeypatch.setattr(module, "BATCH", room)
    x, y = data()
    support = supports()
    found = solve_rows(*moments(x, y), support, SAMPLES)
    weight, error = by_rows(x, y, support)
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.error.numpy(), error, rtol=1e-8)
    assert not bool(found.weight[~support].any())
    assert found.shift == 0


def test_moments_of_constant_inputs_are_rounding():
    """As centring leaves them where all inputs are constant: some are below zero, and so is their sum."""
    found = torch.tensor([-5e-15, 1e-16, 2e-16, -3e-15], dtype=torch.float64).diag()
    found[1, 2] = found[2, 1] = 4e-15
    cross, support = torch.full((2, 4), 1e-17, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    solved = solve_rows(found, cross, torch.tensor([1.0, 0.0], dtype=torch.float64), support, 1000)
    assert bool(solved.weight.isfinite().all())
    assert bool((solved.error <= torch.tensor([1.0, 0.0])).all())


def test_equal_supports_are_factorised_once(monkeypatch):
    sizes = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda blocks: sizes.append(blocks.shape) or cholesky(blocks))
    x, y = data()
    support = torch.zeros(OUTPUTS, FEATURES, dtype=torch.bool)
    support[:4, :5], support[4:, 5:] = True, True
    support[-1, 5] = False
    found = solve_rows(*moments(x, y), support, SAMPLES)
    assert sorted(sizes) == [(1, 5, 5), (1, 14, 14), (1, 15, 15)]
    np.testing.assert_allclose(found.weight.numpy(), by_rows(x, y, support)[0], rtol=1e-6, atol=1e-6)


def test_batches_are_as_large_as_there_is_room(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3 * 10**2)
    support = torch.zeros(OUTPUTS, FEATURES, dtype=torch.bool)
    for row in range(OUTPUTS):
        support[row, row : row + 10] = True
    support[:, 0] = support.sum(1) < 10  # ten of each, but of the last rows
    found = list(module._batches(support))
    assert sorted(row for batch in found for row in batch.flatten().tolist()) == list(range(OUTPUTS))
    assert max(len(batch) * int(support[batch[:, 0]].sum(1).max()) ** 2 for batch in found) <= 3 * 10**2
    assert max(len(batch) for batch in found) == 3


def test_singular_moments_give_the_least_error_there_is():
    """Dead inputs, twins, and inputs that add up to nothing; a single one that all others repeat."""
    x, y = data()
    x[:, 2], x[:, 5], x[:, 9] = 0.0, x[:, 4], -x[:, 10:].sum(1)
    support = torch.ones(OUTPUTS, FEATURES, dtype=torch.bool)
    support[::2, 1] = False
    cxx, cyx, variance = moments(x, y)
    found = solve_rows(cxx, cyx, variance, support, SAMPLES)
    np.testing.assert_allclose(found.error.numpy(), by_rows(x, y, support)[1], rtol=1e-6)
    assert not bool(found.weight[:, 2].any())
    assert float(found.weight.abs().max()) < 1e3
    ones = solve_rows(torch.ones(1500, 1500).double(), torch.ones(2, 1500).double(), torch.ones(2).double(),
                      torch.ones(2, 1500, dtype=torch.bool), 10**6)  # fmt: skip
    assert float(ones.error.max()) < 1e-6
    none = solve_rows(cxx * 0, cyx * 0, variance, support, SAMPLES)
    assert not bool(none.weight.any())
    assert torch.equal(none.error, variance)


@pytest.mark.parametrize("samples", [5, 15, 30, 300])
def test_few_samples_get_a_ridge_and_the_error_never_rises(samples):
    x, y = data(samples)
    x, y = x - x.mean(0), y - y.mean(0)
    new_x, new_y = data(2000, seed=0)
    support = supports()
    cxx, cyx, variance = moments(x, y)
    found = solve_rows(cxx, cyx, variance, support, samples)
    assert bool(found.weight.isfinite().all())
    assert bool((found.error <= variance).all())
    measured = ((y - x @ found.weight.numpy().T) ** 2).mean(0)
    np.testing.assert_allclose(found.error.numpy(), measured, rtol=1e-6, atol=1e-9)
    if samples == 15:
        fitted = ((new_y - new_x @ by_rows(x, y, support)[0].T) ** 2).mean()
        assert ((new_y - new_x @ found.weight.numpy().T) ** 2).mean() < 0.8 * fitted


def test_the_ridge_of_a_single_row_is_that_of_generalised_cross_validation():
    x, y = data(30)
    cxx, cyx, variance = moments(x, y[:, :1])
    own = torch.ones(1, FEATURES, dtype=torch.bool)
    values, basis = eigenpairs(cxx, CUT, 30)
    expected = best_shift(values, cyx @ basis, Samples(30, float(variance)), float(cxx.diagonal().mean()))
    assert solve_rows(cxx, cyx, variance, own, 30).shift == pytest.approx(expected)
    assert expected > 0


def test_rows_with_plenty_of_samples_have_no_ridge():
    """300 samples are plenty for two inputs and not for twenty: only the latter are held back."""
    x, y = data(300)
    support = torch.ones(2, FEATURES, dtype=torch.bool)
    support[0, 2:] = False
    noise = np.random.default_rng(3).normal(size=(300, 2)) * 30
    y = noise - noise.mean(0)
    cxx, cyx, variance = moments(x, y)
    found = solve_rows(cxx, cyx, variance, support, 300)
    weight, _ = by_rows(x, y, support)
    assert found.shift > 0
    np.testing.assert_allclose(found.weight[0].numpy(), weight[0], rtol=1e-6)
    assert float(found.weight[1].norm()) < 0.9 * np.linalg.norm(weight[1])


@pytest.mark.parametrize("mean", [1.0, 100.0, 1e4])
def test_moments_of_large_means_that_rounding_left_indefinite_are_solved(mean):
    """Eight values in 64 inputs: what the sums of squares lose is far above a share of the variance."""
    draws = np.random.default_rng(0)
    x = mean + draws.standard_normal((SAMPLES, 8)) @ draws.standard_normal((8, 64))
    y = x @ draws.standard_normal((64, 5))
    raw, means, outputs = x.T @ x / len(x), x.mean(0), y.mean(0)  # as streams of sums have it
    cxx, cyx = raw - np.outer(means, means), y.T @ x / len(x) - np.outer(outputs, means)
    variance = (y * y).mean(0) - outputs**2
    support = torch.from_numpy(draws.random((5, 64)) < 0.5)
    found = solve_rows(*(torch.from_numpy(part) for part in (cxx, cyx, variance)), support, SAMPLES)
    assert bool(found.weight.isfinite().all())
    assert not found.weight[~support].any()
    errors = ((y - outputs) - (x - means) @ found.weight.numpy().T).var(0)
    assert (errors < 1e-3 * variance).all()


def test_what_no_ridge_makes_positive_is_refused():
    with pytest.raises(ConvergenceError, match="cannot be factorised"):
        module._solve(-torch.eye(2), torch.ones(1, 1, 2), torch.ones(1, 2) > 0, torch.full((1,), 1e-30))
