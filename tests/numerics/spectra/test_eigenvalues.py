"""Spectra against plain decompositions, and their figures against WeightWatcher's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.numerics.spectra import eigenvalues as spectra
from compresskit.numerics.spectra.eigenvalues import eigenvalues, gaussian, jensen_shannon, permuted, summary

FIXTURES = json.loads(Path(__file__).with_name("spectra_fixtures.json").read_text())
SHAPES = [
    (1, 30, 20),
    (1, 20, 30),
    (9, 16, 8),
    (9, 8, 40),
    (2, 50, 40),
    (9, 12, 1),
    (1, 1, 7),
    (3, 7, 7),
    (1, 40, 1100),
]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def plain(stack: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.svd(stack, compute_uv=False) ** 2, axis=-1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eigenvalues_are_squared_singular_values(shape, exact):
    found = eigenvalues(draw(*shape), exact=exact)
    assert found.shape == (shape[0], min(shape[1:]))
    np.testing.assert_allclose(found, plain(draw(*shape)), rtol=1e-10)


def test_more_columns_than_openblas_is_given(monkeypatch):
    monkeypatch.setattr("compresskit.numerics.spectra.eigenvalues._NUMPY", 10)
    np.testing.assert_allclose(eigenvalues(draw(1, 60, 40)), plain(draw(1, 60, 40)), rtol=1e-10)


@pytest.mark.parametrize("count", [1, 6])
def test_pruned_and_low_rank_matrices_keep_their_small_eigenvalues(count):
    """A Gram matrix alone gives -1e-13 for a zero, and loses what is 1e-16 of the largest."""
    stack = draw(count, 40, 24)
    stack[:, 5:15] = 0  # filters
    stack[:, :, 3:9] = 0  # channels
    found = eigenvalues(stack)
    assert (found[:, :6] == 0).all()
    np.testing.assert_allclose(found, plain(stack), rtol=1e-9, atol=1e-25)
    steep = draw(count, 24, 24) * np.geomspace(1, 1e-7, 24)
    np.testing.assert_allclose(eigenvalues(steep), plain(steep), rtol=1e-4)
    rank_two = draw(count, 30, 2) @ draw(count, 2, 20)
    assert summary(eigenvalues(rank_two)[0], 30).rank == 2


def test_a_matrix_of_zeros_and_one_that_is_not_finite():
    assert not eigenvalues(np.zeros((2, 5, 4))).any()
    with pytest.raises(ValueError, match="not finite"):
        eigenvalues(np.array([[[1.0, math.nan], [0, 1]]]))


@pytest.mark.parametrize("spectrum", FIXTURES["spectra"], ids=lambda spectrum: spectrum["name"])
def test_figures_are_those_of_weightwatcher(spectrum):
    x = np.array(spectrum["evals"])
    found = summary(x, len(x))
    (entropy,) = (value for key, value in spectrum.items() if key.startswith("entropy"))
    assert found.entropy == pytest.approx(entropy, rel=1e-12)
    assert found.stable_rank == pytest.approx(spectrum["stable_rank"], rel=1e-12)
    assert (found.rank, found.rank_loss) == (spectrum["matrix_rank"], len(x) - spectrum["matrix_rank"])
    assert (found.norm, found.spectral_norm) == (pytest.approx(x.sum()), x.max())
    assert (found.log_norm, found.log_spectral_norm) == (
        pytest.approx(math.log10(x.sum())), pytest.approx(math.log10(x.max()))
    )  # fmt: skip
    assert found.weak_rank_loss == (x < 1e-6).sum()


def test_spectra_of_rank_one_and_zero_have_no_garbage():
    assert summary(np.array([0.0, 0.0, 2.0]), 3).entropy == 0  # WeightWatcher divides by ln(1 + 1e-10)
    nothing = summary(np.zeros(4), 4)
    assert (nothing.rank, nothing.rank_loss, nothing.norm) == (0, 4, 0)
    assert all(math.isnan(value) for value in (nothing.log_norm, nothing.stable_rank, nothing.entropy))


@pytest.fixture(params=["in one", "by blocks"])
def small_caches(request, monkeypatch):
    """Matrices of some thousand entries count as large with `by blocks`."""
    if request.param == "by blocks":
        monkeypatch.setattr(spectra, "_LARGE", 1 << 11)
        monkeypatch.setattr(spectra, "_CACHED", 1 << 9)


@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 61, 53), (1, 80, 64), (2, 4096, 1)])
def test_permuting_keeps_the_entries_of_each_matrix_and_follows_the_seed(shape, small_caches):
    stack = draw(*shape)
    mixed = permuted(stack, 1)
    for one, other in zip(stack, mixed, strict=True):
        assert not np.array_equal(one, other)
        np.testing.assert_array_equal(np.sort(one.ravel()), np.sort(other.ravel()))
    np.testing.assert_array_equal(mixed, permuted(stack, 1))
    assert not np.array_equal(mixed, permuted(stack, 2))


def test_permuting_brings_every_entry_to_every_place(small_caches):
    """Chi square of where 64 groups of entries come to, over 200 seeds; 63 x 63 degrees of freedom."""
    stack = np.repeat(np.arange(64.0), 64).reshape(1, 64, 64)
    counts = np.zeros((64, 64))
    for seed in range(200):
        np.add.at(counts, (np.arange(4096) // 64, permuted(stack, seed).ravel().astype(int)), 1)
    expected = 200.0
    freedom = 63 * 63
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * math.sqrt(2 * freedom)


STRUCTURED = {
    "equal taps": lambda draws: np.repeat(draws.standard_t(3, (1, 64, 48)), 9, 0),
    "heavy rows and columns": lambda draws: (
        draws.standard_t(3, (1, 96, 64)) * draws.lognormal(0, 0.7, (1, 96, 1)) * draws.lognormal(0, 0.7, (1, 1, 64))
    ),
    "blocks of rows": lambda draws: draws.standard_normal((1, 96, 64)) * np.repeat([1, 5, 1, 9], 24)[:, None],
    "every other column": lambda draws: draws.standard_normal((1, 96, 64)) * np.tile([1, 7], 32),
    "rows of other means": lambda draws: draws.standard_normal((1, 96, 64)) + np.repeat([0, 0, 3, 0], 24)[:, None],
    "equal taps of other means": lambda draws: np.repeat(
        draws.standard_normal((1, 40, 60)) + np.repeat([0, 3], 20)[:, None], 9, 0
    ),
    "dead rows": lambda draws: (draws.standard_normal((1, 96, 64)) + 1) * np.repeat([1, 0.01, 0.01, 0.01], 24)[:, None],
    "low rank": lambda draws: draws.standard_normal((1, 96, 3)) @ draws.standard_normal((1, 3, 64)),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_permuted_spectra_are_those_of_independent_orders(name, small_caches):
    """Mean and scatter of the largest eigenvalue and of the distance, over 80 seeds, against one order for each."""
    stack = STRUCTURED[name](np.random.default_rng(0))
    own = np.sort(eigenvalues(stack), axis=None)

    def independent(seed):
        return np.stack([np.random.default_rng([seed, n]).permutation(m.ravel()) for n, m in enumerate(stack)])

    def entropy(drawn):
        return summary(drawn, 100).entropy

    for figure in (np.max, np.min, entropy, lambda drawn: jensen_shannon(own, drawn)):
        ours, theirs = (
            np.array([figure(np.sort(eigenvalues(mixed.reshape(stack.shape)), axis=None)) for mixed in drawn])
            for drawn in ([permuted(stack, s) for s in range(80)], [independent(s) for s in range(80)])
        )
        error = math.hypot(ours.std(), theirs.std()) / math.sqrt(80)
        assert abs(ours.mean() - theirs.mean()) < 4 * error
        assert 0.6 < ours.std() / theirs.std() < 1.67


def test_distances_of_spectra():
    expected = FIXTURES["distance"]
    p, q = np.array(expected["p"]), np.array(expected["q"])
    assert jensen_shannon(p, q) == pytest.approx(expected["jensen_shannon_distance"], rel=1e-12)
    assert jensen_shannon(q, p) == pytest.approx(expected["jensen_shannon_distance"], rel=1e-12)
    assert jensen_shannon(p, p[::-1]) == 0
    assert jensen_shannon(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0])) < math.sqrt(math.log(2))
    assert jensen_shannon(p, p * (1 + 1e-12)) == 0  # rounding is no distance
    divergence = expected["jensen_shannon_distance"] ** 2
    assert jensen_shannon(p, q, rooted=False) == pytest.approx(divergence, rel=1e-12)
    assert math.isnan(jensen_shannon(p, 0 * q))


def test_gaussian_matrices_have_the_moments_of_each_matrix():
    stack = draw(2, 60, 50) * np.array([1.0, 5.0])[:, None, None] + 3
    random = gaussian(stack, 1)
    np.testing.assert_allclose(random.mean((1, 2)), stack.mean((1, 2)), atol=0.3)
    np.testing.assert_allclose(random.std((1, 2)), stack.std((1, 2)), rtol=0.05)
    np.testing.assert_array_equal(random, gaussian(stack, 1))
    assert not np.array_equal(random, gaussian(stack, 2))


@pytest.mark.parametrize("shape", [(1, 40, 12), (5, 9, 9), (3, 6, 20)])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_eigenvalues_of_other_devices(shape, device):
    """What a GPU runs, with the CPU in its place where there is none."""
    stack = draw(*shape)
    wanted = np.sort(np.linalg.svd(stack, compute_uv=False) ** 2)
    tall = np.ascontiguousarray(stack if shape[1] >= shape[2] else stack.swapaxes(1, 2))
    np.testing.assert_allclose(spectra._elsewhere(tall, device), wanted, atol=1e-12 * wanted.max())


@pytest.mark.parametrize("shape", [(1, 200, 200), (3, 64, 64), (1, 90, 80)])
def test_the_smallest_eigenvalues_of_wide_matrices_are_found_again(shape, monkeypatch):
    """With small matrices in the place of wide ones."""
    stack = draw(*shape)
    stack[:, :, 0] = stack[:, :, 1] + 1e-3 * stack[:, :, 0]  # a smallest singular value of 1e-5 of the largest
    exact = np.sort(np.linalg.svd(stack, compute_uv=False) ** 2)
    rough = np.abs(eigenvalues(stack)[:, 0] / exact[:, 0] - 1).max()
    monkeypatch.setattr(spectra, "_NUMPY", 0)
    found = eigenvalues(stack)
    assert rough > 1e-9
    np.testing.assert_allclose(found[:, :4], exact[:, :4], rtol=1e-11)
    np.testing.assert_allclose(found, exact, atol=1e-14 * exact.max())
    assert bool((np.diff(found) > 0).all())
