"""Scores of channels and ratios of groups against plain loops, and their laws."""

import math

import numpy as np
import pytest
import torch

from compresskit.numerics.pruning.criteria import first_order, hydra, magnitude, spectral_energy
from compresskit.numerics.pruning.ratios import ceilings, counts, erdos_renyi, lamp, uniform
from compresskit.numerics.spectra.power_law import search


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_norms_and_hydra_are_those_of_each_filter(shape):
    w = weight(*shape)
    fan_in, largest = math.prod(shape[1:]), float(w.abs().max())
    for out, row in enumerate(w):
        values = row.flatten().tolist()
        assert magnitude(w, 1.0)[out].item() == pytest.approx(sum(map(abs, values)))
        assert magnitude(w, 2.0)[out].item() == pytest.approx(math.sqrt(sum(v * v for v in values)))
        scaled = [math.sqrt(6 / fan_in) * abs(v) / largest for v in values]
        assert hydra(w)[out].item() == pytest.approx(sum(scaled))
    torch.testing.assert_close(hydra(7 * w), hydra(w))  # a layer's scale does not matter
    assert hydra(0 * w).tolist() == [0] * 6


def test_first_order_is_the_change_of_a_linear_loss():
    w, g = weight(4, 3, 2, 2), weight(4, 3, 2, 2).flip(0)
    for out in range(4):
        without = w.clone()
        without[out] = 0
        assert first_order(w, g)[out].item() == pytest.approx(abs(float(((w - without) * g).sum())))


def test_spectral_energy_is_the_norm_within_the_tail():
    w = weight(30, 40)
    left, singular, _ = np.linalg.svd(w.numpy(), full_matrices=False)
    start = search(singular**2).xmin
    inside = singular**2 >= start * (1 - 1e-9)
    assert 0 < inside.sum() < 30
    expected = (left**2 * np.where(inside, singular**2, 0)).sum(1)
    np.testing.assert_allclose(spectral_energy(w).numpy(), expected, rtol=1e-9)
    rank_one = torch.outer(weight(5), weight(7))  # no power law: all of it
    np.testing.assert_allclose(spectral_energy(rank_one).numpy(), rank_one.square().sum(1).numpy(), rtol=1e-9)


def test_lamp_is_a_share_of_itself_and_all_larger_ones():
    scores = torch.tensor([3.0, 1.0, 2.0])
    np.testing.assert_allclose(lamp(scores).numpy(), [9 / 9, 1 / 14, 4 / 13])
    assert lamp(torch.zeros(3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(lamp(5 * scores), lamp(scores))


def test_densities_by_erdos_renyi():
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (10, 64)]
    raw = [73 / 1728, 134 / 36864, 74 / 640]
    np.testing.assert_allclose(1 - erdos_renyi(shapes, 0.5), [min(1, 0.5 * r / min(raw)) for r in raw])
    assert erdos_renyi(shapes, 0.0).tolist() == [0, 0, 0]
    np.testing.assert_allclose(erdos_renyi(shapes, 1.0), [1, 1, 1])


def test_ceilings_are_in_proportion_and_equal_ones_are_uniform():
    np.testing.assert_allclose(ceilings(np.array([1.0, 2.0, 3.0]), 0.4), [0.2, 0.4, 0.6])
    np.testing.assert_allclose(ceilings(np.array([1.0, 2.0, 3.0]), 0.8), [0.4, 0.8, 1.0])
    np.testing.assert_allclose(ceilings(np.full(4, 7.0), 0.3), uniform(4, 0.3))


@pytest.mark.parametrize(
    ("ratio", "size", "least", "multiple", "kept"),
    [(0.5, 10, 1, 1, 5), (0.55, 10, 1, 1, 5), (1.0, 10, 1, 1, 1), (1.0, 10, 3, 1, 3), (0.5, 10, 1, 8, 8),
     (0.0, 10, 1, 8, 10), (1.0, 2, 4, 1, 2), (0.9, 100, 1, 16, 16), (0.1, 6, 1, 8, 6), (0.3, 10, 1, 1, 7)],
)  # fmt: skip
def test_counts_round_up_and_never_fall_short(ratio, size, least, multiple, kept):
    assert counts(np.array([ratio]), [size], least, multiple) == [kept]
