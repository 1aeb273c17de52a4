"""The divergence of several views against sums in numpy, and its laws."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from compresskit.numerics.consistency import divergence


def scores(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 3, 6), (3, 2, 4, 3, 2)])
def test_it_is_the_mean_divergence_from_the_mixture(shape):
    given = scores(*shape)
    p = softmax(given.numpy(), axis=2)
    mixture = p.mean(0)
    wanted = np.mean([(q * np.log(q / mixture)).sum(1) for q in p])
    assert float(divergence(given)) == pytest.approx(wanted, rel=1e-10)


def test_its_limits():
    assert float(divergence(scores(1, 5, 4).expand(3, 5, 4))) == pytest.approx(0, abs=1e-12)
    sure = 1000 * torch.eye(3)[:, None, :].expand(3, 7, 3)  # each view is sure of another class
    assert float(divergence(sure)) == pytest.approx(math.log(3))


def test_gradients_stay_finite_where_a_net_is_sure():
    sure = (1000 * torch.eye(3)[:, None, :].repeat(1, 7, 1)).requires_grad_()
    divergence(sure).backward()
    assert bool(sure.grad.isfinite().all())
