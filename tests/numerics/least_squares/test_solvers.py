"""Every solver of SOLVERS against numpy's least squares, and the laws that they share."""

import numpy as np
import pytest
import torch
from torch import Tensor

from compresskit.numerics.least_squares.solvers import (
    PLENTY,
    SOLVERS,
    Cholesky,
    ConjugateGradient,
    EigenDecomposition,
    Samples,
    eigenpairs,
)

FEATURES, OUTPUTS = 12, 3


def problem(rows: int, dead: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """(cxx, cyx) of random data with its last `dead` inputs constant, and the centred data itself."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, FEATURES)) @ random.normal(size=(FEATURES, FEATURES))
    y = random.normal(size=(rows, OUTPUTS)) + x[:, :OUTPUTS]
    if dead:
        x[:, -dead:] = 3.0
    x, y = x - x.mean(0), y - y.mean(0)
    return torch.from_numpy(x.T @ x / rows), torch.from_numpy(y.T @ x / rows), x, y


@pytest.mark.parametrize("kind", SOLVERS)
def test_equals_numpy_on_a_well_posed_problem(kind):
    cxx, cyx, x, y = problem(200)
    solution = SOLVERS[kind](ridge=0.0)(cxx, cyx)
    expected = np.linalg.lstsq(x, y, rcond=None)[0].T
    # cg stops at a residual of 1e-8; the condition number is about 1e4
    np.testing.assert_allclose(solution.weight.numpy(), expected, rtol=1e-4 if kind == "cg" else 1e-9)
    assert solution.converged
    assert solution.residual < 1e-8
    assert solution.rank in (FEATURES, None)


@pytest.mark.parametrize("kind", SOLVERS)
def test_dead_inputs_get_weight_zero(kind):
    cxx, cyx, _, _ = problem(200, dead=2)
    solution = SOLVERS[kind](ridge=0.0)(cxx, cyx)
    assert torch.all(solution.weight[:, -2:] == 0)
    assert solution.residual < 1e-8
    assert solution.rank in (FEATURES - 2, None)


@pytest.mark.parametrize("kind", ["cholesky", "cg"])
def test_inputs_of_rounding_alone_are_dead(kind):
    cxx = torch.diag(torch.tensor([1.0, 2.0, 1e-16])).double()
    solution = SOLVERS[kind](ridge=0.0)(cxx, torch.tensor([[1.0, 1.0, 1e-17]]).double())
    torch.testing.assert_close(solution.weight, torch.tensor([[1.0, 0.5, 0.0]]).double(), rtol=1e-7, atol=0)
    assert solution.method == kind


@pytest.mark.parametrize("largest_last", [True, False])
def test_outputs_of_a_layer_norm_take_no_weights_from_their_rounding(largest_last):
    """Weighted by 1 / gamma they add up to nothing but rounding, which no pivot shows where the last gamma is large."""
    random = np.random.default_rng(0)
    scale = np.geomspace(0.1, 3, 24)[:: 1 if largest_last else -1]
    z = random.normal(size=(2000, 24)) * random.exponential(size=(2000, 1))
    x = ((z - z.mean(1, keepdims=True)) * (1 + 1e-6 * random.normal(size=z.shape))) * scale
    rounding = (x / scale).sum(1)
    y = x[:, :2] + (rounding / rounding.std())[:, None]
    x, y = x - x.mean(0), y - y.mean(0)
    cxx = x.T @ x / len(x)
    assert np.linalg.eigvalsh(cxx)[0] < 1e-12 * np.linalg.eigvalsh(cxx)[-1]
    solution = Cholesky(ridge=0.0)(torch.from_numpy(cxx), torch.from_numpy(y.T @ x / len(x)))
    assert float(solution.weight.abs().max()) < 100
    assert (solution.method, solution.rank) == ("eigh", 23)


@pytest.mark.parametrize("kind", ["cholesky", "eigh"])
def test_fewer_samples_than_inputs_give_the_minimum_norm(kind):
    cxx, cyx, x, y = problem(8)
    solution = SOLVERS[kind](ridge=0.0)(cxx, cyx)
    expected = np.linalg.lstsq(x, y, rcond=1e-12)[0].T
    np.testing.assert_allclose(solution.weight.numpy(), expected, rtol=1e-6)  # squares the condition number
    assert solution.rank == 7  # centring takes one
    assert solution.method == "eigh"


@pytest.mark.parametrize("kind", SOLVERS)
def test_ridge_equals_its_closed_form(kind):
    cxx, cyx, _, _ = problem(200)
    ridge = 0.3
    shifted = cxx + ridge * cxx.diagonal().mean() * torch.eye(FEATURES, dtype=torch.float64)
    solution = SOLVERS[kind](ridge=ridge)(cxx, cyx)
    torch.testing.assert_close(solution.weight @ shifted, cyx, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", SOLVERS)
def test_nothing_correlated_gives_zero(kind):
    solution = SOLVERS[kind](ridge=0.0)(
        torch.eye(FEATURES, dtype=torch.float64), torch.zeros(OUTPUTS, FEATURES).double()
    )
    assert torch.all(solution.weight == 0)
    assert solution.converged


def test_constant_inputs_give_zero_and_rank_zero():
    solution = Cholesky(ridge=0.0)(torch.zeros(2, 2).double(), torch.zeros(1, 2).double())
    assert torch.all(solution.weight == 0)
    assert solution.rank == 0


def test_cg_reports_that_it_stopped_early():
    cxx, cyx, _, _ = problem(200)
    solution = ConjugateGradient(max_iter=2)(cxx, cyx)
    assert not solution.converged
    assert solution.n_iter == 2
    assert solution.residual > 1e-8


def test_cg_takes_no_more_steps_than_unknowns_by_much():
    cxx, cyx, _, _ = problem(200)
    assert ConjugateGradient()(cxx, cyx).n_iter <= 3 * FEATURES


def test_cut_drops_the_small_eigenvalues():
    cxx = torch.diag(torch.tensor([1.0, 1e-3])).double()
    solution = EigenDecomposition(cut=1e-2, ridge=0.0)(cxx, torch.ones(1, 2).double())
    torch.testing.assert_close(solution.weight, torch.tensor([[1.0, 0.0]]).double())
    assert solution.rank == 1


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 0.3, 10.0])
def test_degrees_of_freedom_are_the_trace_of_the_smoother(kind, ridge):
    cxx, cyx, _, _ = problem(200)
    shifted = cxx + ridge * cxx.diagonal().mean() * torch.eye(FEATURES, dtype=torch.float64)
    expected = float((cxx @ torch.linalg.inv(shifted)).trace())
    # cg draws eight vectors of signs: within a tenth of the twelve unknowns
    assert SOLVERS[kind](ridge=ridge)(cxx, cyx).freedom == pytest.approx(expected, abs=1.2 if kind == "cg" else 1e-8)


def cross_validated(x: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """GCV as it is defined, by the matrix that turns the targets into the fitted ones."""
    rows = len(x)
    shift = ridge * np.trace(x.T @ x / rows) / FEATURES
    hat = x @ np.linalg.solve(x.T @ x / rows + shift * np.eye(FEATURES), x.T / rows) + 1 / rows
    return float(((y - hat @ y) ** 2).sum() / rows / (1 - np.trace(hat) / rows) ** 2)


@pytest.mark.parametrize("kind", ["cholesky", "eigh"])
@pytest.mark.parametrize("rows", [16, 60, 300])
def test_auto_takes_the_ridge_that_cross_validation_likes_best(kind, rows):
    cxx, cyx, x, y = problem(rows)
    solution = SOLVERS[kind](ridge="auto")(cxx, cyx, Samples(rows, float((y**2).sum() / rows)))
    best = min(cross_validated(x, y, ridge) for ridge in 10 ** np.linspace(-12, 2, 300))
    assert cross_validated(x, y, solution.ridge) <= best * 1.001
    assert solution.ridge > 0


@pytest.mark.parametrize("dead", [0, 5])
@pytest.mark.parametrize("rows", [4, 11, 39])
def test_a_matrix_of_few_samples_has_the_sameeigenpairs_by_its_thin_factor(rows, dead):
    """40 inputs: of fewer than 20 samples the spectrum comes from the factorisation with pivots."""
    random = np.random.default_rng(rows)
    x = random.normal(size=(rows, 40)) * np.logspace(0, -3, 40)
    x[:, :dead] = 2.0
    x = torch.from_numpy(x - x.mean(0))
    cxx = x.T @ x / rows
    values, vectors = eigenpairs(cxx, 1e-12, rows)
    expected = torch.linalg.eigvalsh(cxx)
    expected = expected[expected > 1e-12 * expected[-1]]
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-14 * float(expected[-1]))
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(values), dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close((vectors * values) @ vectors.T, cxx, rtol=0, atol=1e-13 * float(expected[-1]))


def test_few_samples_give_the_same_weights_whichever_way_their_spectrum_came():
    random = np.random.default_rng(3)
    x = random.normal(size=(15, 40))
    y = x[:, :3] + random.normal(size=(15, 3))
    x, y = torch.from_numpy(x - x.mean(0)), torch.from_numpy(y - y.mean(0))
    cxx, cyx, variance = x.T @ x / 15, y.T @ x / 15, float(y.square().sum() / 15)
    thin = EigenDecomposition(ridge=1e-2)(cxx, cyx, Samples(15, variance))
    whole = EigenDecomposition(ridge=1e-2)(cxx, cyx)
    torch.testing.assert_close(thin.weight, whole.weight)
    assert (thin.rank, thin.method) == (whole.rank, whole.method) == (14, "eigh")
    assert thin.freedom == pytest.approx(whole.freedom)


def test_auto_goes_on_where_samples_are_fewer_than_unknowns():
    cxx, cyx, x, y = problem(8)
    solution = Cholesky()(cxx, cyx, Samples(8, float((y**2).sum() / 8)))
    assert solution.ridge > 0
    assert 8 - 1 - solution.freedom >= 0.999  # one sample more than is fitted: with none, nothing is known of the error


def test_auto_is_no_ridge_and_no_eigenvalues_with_plenty_of_samples():
    cxx, cyx, _, y = problem(200)
    plenty = Samples(PLENTY * (FEATURES + 1) + 1, float((y**2).mean(0).sum()))
    assert Cholesky()(cxx, cyx, plenty).method == "cholesky"
    assert Cholesky()(cxx, cyx, plenty).ridge == 0


def test_auto_is_the_same_in_any_unit():
    cxx, cyx, _, y = problem(30)
    variance = float((y**2).sum() / 30)
    plain = Cholesky()(cxx, cyx, Samples(30, variance))
    scaled = Cholesky()(1e-20 * cxx, 1e-10 * cyx, Samples(30, variance))
    assert scaled.ridge == pytest.approx(plain.ridge)
    torch.testing.assert_close(scaled.weight * 1e-10, plain.weight)


def test_auto_wants_to_know_the_samples():
    with pytest.raises(ValueError, match="number of samples and the variance of the target"):
        Cholesky()(*problem(200)[:2])
