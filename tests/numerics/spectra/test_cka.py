"""Similarity of representations against the plain formula, and its laws."""

import numpy as np
import pytest
import torch

from compresskit.numerics.spectra.cka import BatchedCKA


def plain_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n = len(x)
    k, l_ = (z @ z.T for z in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l_, 0)
    one = np.ones(n)
    trace = np.trace(k @ l_)
    means = (one @ k @ one) * (one @ l_ @ one) / ((n - 1) * (n - 2))
    return (trace + means - 2 / (n - 2) * (one @ k @ l_ @ one)) / (n * (n - 3))


def features(seed: int, n: int = 12, width: int = 5) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_batches_average_the_unbiased_estimator():
    batches = [
        ([features(1), features(2, width=3)], [features(3)]),
        ([features(4), features(5, width=3)], [features(6)]),
    ]
    found = BatchedCKA()
    for first, second in batches:
        found.add(first, second)
    for layer in (0, 1):
        pairs = [(first[layer].numpy(), second[0].numpy()) for first, second in batches]
        cross, one, other = (
            np.mean([plain_hsic(*choose) for choose in ([(x, y) for x, y in pairs], [(x, x) for x, _ in pairs],
                                                          [(y, y) for _, y in pairs])[number]])
            for number in range(3)
        )  # fmt: skip
        assert found.similarity()[layer, 0].item() == pytest.approx(cross / np.sqrt(one * other), rel=1e-10)


def test_axes_and_scale_do_not_matter_and_maps_are_flattened():
    x = features(1, 20, 12)
    turned = x @ torch.linalg.qr(features(2, 12, 12))[0] * 3
    found = BatchedCKA()
    found.add([x, turned, x.view(20, 3, 2, 2), x[:, :4]])
    similarity = found.similarity()
    np.testing.assert_allclose(similarity[:3, :3].numpy(), np.ones((3, 3)), rtol=1e-10)
    assert similarity[0, 3] < 0.95
    np.testing.assert_allclose(similarity.numpy(), similarity.T.numpy(), rtol=1e-12)


def test_unrelated_features_are_unlike_however_wide():
    """The biased estimator gives nearly 1 for features wider than the batch."""
    found = BatchedCKA()
    for seed in range(40):
        found.add([features(2 * seed, 16, 300)], [features(2 * seed + 1, 16, 300)])
    assert abs(found.similarity().item()) < 0.1


def test_too_few_samples_and_no_batch():
    with pytest.raises(ValueError, match="4 samples"):
        BatchedCKA().add([features(1, 3)])
    with pytest.raises(ValueError, match="one batch"):
        BatchedCKA().similarity()


def test_the_biased_estimator_is_equation_2_15():
    """HSIC(K, L) = tr(K H L H) / (n - 1)^2, with kernels as they are."""
    batches = [(features(1), features(2, width=3)), (features(3), features(4, width=3))]

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        n = len(x)
        h = np.eye(n) - np.ones((n, n)) / n
        return np.trace(x @ x.T @ h @ y @ y.T @ h) / (n - 1) ** 2

    found = BatchedCKA("biased")
    for first, second in batches:
        found.add([first], [second])
    pairs = [(first.numpy(), second.numpy()) for first, second in batches]
    cross = sum(hsic(x, y) for x, y in pairs)
    one, other = sum(hsic(x, x) for x, _ in pairs), sum(hsic(y, y) for _, y in pairs)
    assert found.similarity().item() == pytest.approx(cross / np.sqrt(one * other), rel=1e-12)
