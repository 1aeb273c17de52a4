"""Quadrature against decompositions, the test of spectra against its definition, and laws of orthogonal matrices."""

import math

import numpy as np
import pytest
import torch

from compresskit.numerics.orthogonal.isometry import SingularValues, decomposed, differ, pooled, quadrature
from compresskit.numerics.orthogonal.matrices import orthogonal


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signs(rows: int, size: int) -> torch.Tensor:
    return drawn(rows, size, seed=1).sign()


def estimate(matrices: torch.Tensor, probes: int, steps: int) -> SingularValues:
    """Of (count, m, n) matrices with m <= n, by products alone."""
    start = signs(probes * len(matrices), matrices.shape[1])

    def apply(rows: torch.Tensor) -> torch.Tensor:
        each = rows.view(probes, len(matrices), -1, 1)
        return (matrices @ (matrices.mT @ each)).reshape(rows.shape)

    return quadrature(apply, start, steps)


def test_decomposed_values_ascend_and_are_numpys():
    matrices = drawn(3, 4, 6)
    found = decomposed(matrices)
    np.testing.assert_allclose(
        found.values, np.sort(np.linalg.svd(matrices.numpy(), compute_uv=False), axis=1), rtol=1e-12
    )
    values = found.values.numpy()
    assert found.mean == pytest.approx(values.mean())
    assert found.variance == pytest.approx(values.var())
    assert (found.smallest, found.largest) == (values.min(), values.max())
    np.testing.assert_allclose(found.spectrum(), values.mean(0))
    assert not found.estimated


def test_with_as_many_steps_as_values_a_row_has_all_of_them():
    matrices = drawn(2, 8, 12)
    found = estimate(matrices, probes=1, steps=50)
    np.testing.assert_allclose(found.values, decomposed(matrices).values, rtol=1e-8)  # roots of small nodes lose digits
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)


def test_moments_of_one_start_are_those_that_lanczos_promises():
    """v^T (J J^T)^p v is exact up to the degree 2 steps - 1."""
    matrix = drawn(1, 30, 40)
    found = estimate(matrix, probes=1, steps=5)
    start = signs(1, 30)[0] / math.sqrt(30)
    gram = (matrix @ matrix.mT)[0] / 100
    nodes = (found.values[0] ** 2) / 100
    for power in range(10):
        expected = start @ torch.linalg.matrix_power(gram, power) @ start
        assert float((found.weights[0] * nodes**power).sum()) == pytest.approx(float(expected), rel=1e-10)
    assert float((found.weights[0] * nodes**10).sum()) != pytest.approx(
        float(start @ torch.linalg.matrix_power(gram, 10) @ start), rel=1e-10
    )


def test_an_estimate_of_many_probes_is_near_the_exact_figures():
    matrices = drawn(4, 120, 200)
    found, exact = estimate(matrices, probes=20, steps=30), decomposed(matrices)
    assert found.estimated
    assert found.mean == pytest.approx(exact.mean, rel=0.01)  # 80 probes of 120 values
    assert found.variance == pytest.approx(exact.variance, rel=0.05)
    assert found.largest == pytest.approx(exact.largest, rel=1e-3)
    assert exact.smallest - 1e-9 <= found.smallest <= found.largest <= exact.largest + 1e-9


@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (6, 11)])
def test_orthogonal_matrices_have_ones_only(rows, columns):
    matrix = orthogonal(rows, columns, torch.Generator().manual_seed(0))[None]
    for found in (decomposed(matrix), estimate(matrix, probes=3, steps=8)):
        figures = (found.mean, found.smallest, found.largest)
        assert figures == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
        assert found.variance < 1e-20


def test_a_zero_operator_and_repeated_values_end_early():
    found = quadrature(torch.zeros_like, signs(2, 6), 5)
    assert (found.mean, found.variance, found.largest) == (0, 0, 0)
    twofold = torch.diag(torch.tensor([1.0, 1, 1, 3, 3, 3], dtype=torch.float64))[None]
    found = estimate(twofold, probes=1, steps=6)
    assert found.mean == pytest.approx(2)
    assert (found.smallest, found.largest) == (pytest.approx(1), pytest.approx(3))


def test_what_is_not_finite_is_nan():
    matrix = drawn(2, 3, 3)
    matrix[1, 0, 0] = math.inf
    assert decomposed(matrix).values.isnan().all()
    assert math.isnan(estimate(matrix, probes=1, steps=3).mean)
    assert all(map(math.isnan, differ(decomposed(matrix).spectrum(), torch.ones(3))))


def test_parts_pool_as_the_whole():
    matrices = drawn(5, 4, 4)
    whole, parts = decomposed(matrices), pooled([decomposed(matrices[:2]), decomposed(matrices[2:])])
    torch.testing.assert_close(parts.values, whole.values)
    weighted = pooled([estimate(matrices[:2], 1, 3), estimate(matrices[2:], 1, 3)])
    assert weighted.weights.shape == weighted.values.shape == (5, 3)


def permutations_p(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Statistic by its definition, and p-value as the share of orders of ranks whose statistic is no smaller."""
    from itertools import combinations

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return max(abs((a <= x).mean() - (b <= x).mean()) for x in np.concatenate([a, b]))

    asked, n = statistic(first, second), len(first)
    places = np.arange(n + len(second))
    others = [
        statistic(places[list(kept)], np.delete(places, list(kept))) for kept in combinations(places, n)
    ]  # without ties
    return asked, float(np.mean([other >= asked - 1e-12 for other in others]))


def test_the_test_is_kolmogorovs_and_smirnovs():
    first, second = drawn(6), drawn(6, seed=2) + 1.5
    expected = permutations_p(first.numpy(), second.numpy())
    assert 0.01 < expected[1] < 0.9
    assert differ(first, second) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_rounding_is_no_difference():
    ones = torch.ones(200, dtype=torch.float64)
    assert differ(ones + 1e-8 * drawn(200), ones) == (0, 1)
    statistic, p = differ(ones + 1e-3 * drawn(200), ones)
    assert statistic > 0.4
    assert p < 1e-10
    assert differ(torch.zeros(5), torch.zeros(5)) == (0, 1)
    thirds = torch.arange(12, dtype=torch.float64) / 7
    assert differ(thirds + 1e-8 * drawn(12), thirds) == (0, 1)
