"""Fusion against least squares on the samples themselves, written out in numpy."""

import numpy as np
import pytest
import torch

from compresskit.numerics.least_squares.fusion import fuse
from compresskit.numerics.least_squares.solvers import Cholesky
from compresskit.numerics.moments.moments import Moments, MomentSums

ROWS, FEATURES, OUTPUTS, TAPS = 400, 6, 4, 3
PLAIN = Cholesky(ridge=0.0)


def samples(rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, FEATURES)) @ np.random.default_rng(1).normal(size=(FEATURES, FEATURES)) + 2
    y = np.tanh(x @ np.random.default_rng(2).normal(size=(FEATURES, OUTPUTS))) - 1
    return x, y


def moments(x: np.ndarray, y: np.ndarray, groups: int = 1) -> Moments:
    assert groups == 1
    sums = MomentSums.zeros(x.shape[1], y.shape[1])
    sums.add(torch.from_numpy(x), torch.from_numpy(y))
    return sums.finish()


def squared_error(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    return float(((y - x @ weight.T - bias) ** 2).sum(1).mean())


def test_weight_bias_and_corollary_1_equal_least_squares_on_the_samples():
    x, y = samples()
    found = fuse(moments(x, y), PLAIN)
    expected = np.linalg.lstsq(np.c_[x, np.ones(ROWS)], y, rcond=None)[0].T
    np.testing.assert_allclose(found.weight.numpy(), expected[:, :-1], rtol=1e-9)
    np.testing.assert_allclose(found.bias.numpy(), expected[:, -1], rtol=1e-9)
    assert found.error == pytest.approx(squared_error(x, y, expected[:, :-1], expected[:, -1]), rel=1e-9)
    assert found.variance == pytest.approx(y.var(0).sum(), rel=1e-10)
    assert found.rank == FEATURES


def test_independent_channels_solve_each_block_alone_and_say_their_true_error():
    x, y = samples()
    found = fuse(moments(x, y), PLAIN, "independent", TAPS)
    centred, target = x - x.mean(0), y - y.mean(0)
    blocks = [np.linalg.lstsq(centred[:, i : i + TAPS], target, rcond=None)[0].T for i in (0, TAPS)]
    np.testing.assert_allclose(found.weight.numpy(), np.hstack(blocks), rtol=1e-9)
    np.testing.assert_allclose(found.bias.numpy(), y.mean(0) - np.hstack(blocks) @ x.mean(0), rtol=1e-9)
    assert found.error == pytest.approx(squared_error(x, y, found.weight.numpy(), found.bias.numpy()), rel=1e-9)
    assert found.error > fuse(moments(x, y), PLAIN).error


def test_independent_equals_joint_when_channels_are_uncorrelated():
    x, y = samples()
    found = moments(x, y)
    cxx = found.cxx.clone()
    cxx[0, :TAPS, TAPS:] = cxx[0, TAPS:, :TAPS] = 0
    block = Moments(**{**vars(found), "cxx": cxx})
    joint, independent = fuse(block, PLAIN), fuse(block, PLAIN, "independent", TAPS)
    torch.testing.assert_close(joint.weight, independent.weight, rtol=1e-10, atol=1e-12)


def test_a_linear_target_is_explained_entirely():
    x, _ = samples()
    found = fuse(moments(x, x[:, :2] @ np.array([[1.0, 2.0], [3.0, 4.0]]) + 5), PLAIN)
    assert found.unexplained < 1e-12
    np.testing.assert_allclose(found.bias.numpy(), [5.0, 5.0], rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.3, 3.0, "auto"])
def test_expected_error_predicts_that_of_new_samples_where_corollary_1_is_too_low(ridge):
    """Over many small draws the mean error on new samples; n = 20 for 6 inputs, so fitting noise matters."""
    noise = np.random.default_rng(3)
    expected, error, new, plain = [], [], [], []
    for seed in range(300):
        x, _ = samples(20, seed)
        x_new, _ = samples(50, seed + 1000)
        y, y_new = (a @ np.ones((FEATURES, 1)) + 5 * noise.normal(size=(len(a), 1)) for a in (x, x_new))
        for solver, into in ((Cholesky(ridge=ridge), new), (PLAIN, plain)):
            found = fuse(moments(x, y), solver)
            into.append(squared_error(x_new, y_new, found.weight.numpy(), found.bias.numpy()))
            if solver is not PLAIN or ridge == 0.0:
                expected.append(found.expected_error)
                error.append(found.error)
    # its own scatter over 300 draws is 4 %; the least of many estimates is a little too low
    assert np.mean(expected) == pytest.approx(np.mean(new), rel=0.15 if ridge == "auto" else 0.1)
    assert np.mean(error) < 0.9 * np.mean(new)
    if ridge == "auto":
        assert np.mean(new) < np.mean(plain)


def test_fewer_samples_than_unknowns_promise_nothing():
    x, y = samples(FEATURES)
    assert fuse(moments(x, y), PLAIN).expected_error == float("inf")


def test_groups_are_solved_each_on_its_own_channels():
    x, y = samples()
    first, second = moments(x[:, :TAPS], y[:, :2]), moments(x[:, TAPS:], y[:, 2:])
    joined = Moments(
        **{
            **vars(first),
            **{
                name: torch.cat([getattr(first, name), getattr(second, name)])
                for name in ("mean_x", "mean_y", "cxx", "cyx", "cyy")
            },
        }
    )
    found, one, two = fuse(joined, PLAIN), fuse(first, PLAIN), fuse(second, PLAIN)
    torch.testing.assert_close(found.weight, torch.cat([one.weight, two.weight]))
    torch.testing.assert_close(found.bias, torch.cat([one.bias, two.bias]))
    assert found.error == pytest.approx(one.error + two.error)
