"""Skew-symmetric kernels, the bound of their norm, and the exponential, against whole matrices."""

from math import factorial

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional

from compresskit.numerics.orthogonal.skew import bounded, exponential, skew


def kernel_of(channels, taps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, channels, *taps, dtype=torch.float64, generator=generator)


def matrix_of(apply, shape):
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    return apply(basis).flatten(1).T.numpy()


def zero_padded(kernel):
    return lambda x: functional.conv2d(x, kernel, padding=[k // 2 for k in kernel.shape[2:]])


def cyclic(kernel):
    margins = [m for k in reversed(kernel.shape[2:]) for m in (k // 2, k // 2)]
    return lambda x: functional.conv2d(functional.pad(x, margins, "circular"), kernel)


@pytest.mark.parametrize("padded", [zero_padded, cyclic])
@pytest.mark.parametrize("taps", [(1, 1), (3, 3), (3, 5)])
def test_the_operator_is_skew_symmetric(padded, taps):
    matrix = matrix_of(padded(skew(kernel_of(3, taps))), (3, 6, 7))
    np.testing.assert_allclose(matrix, -matrix.T, atol=1e-13)
    assert np.abs(matrix).max() > 0.5


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("taps", [(1, 1), (3, 3)])
def test_the_norm_is_bounded_by_one_and_not_far_below(scale, taps):
    kernel = skew(kernel_of(8, taps))
    found = bounded(scale * kernel)
    norm = np.linalg.norm(matrix_of(cyclic(found), (8, 5, 5)), 2)
    assert norm <= 1 + 1e-12
    if scale < 0.01:
        assert found.equal(scale * kernel)  # its norm is below 1 already
    else:
        assert norm > 1 / (8 ** (1 / 16) * np.sqrt(np.prod(taps)))


def test_bounded_of_zero_is_zero():
    assert not bounded(torch.zeros(2, 2, 3, 3)).any()


def test_bounded_has_finite_gradients_everywhere():
    kernel = kernel_of(4, (3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: bounded(skew(k)), kernel)
    zero = torch.zeros(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bounded(skew(zero)).sum().backward()
    assert zero.grad.isfinite().all()


def test_exponential_against_scipy():
    kernel = bounded(skew(kernel_of(3, (3, 3))))
    apply = zero_padded(kernel)
    expected = scipy.linalg.expm(matrix_of(apply, (3, 4, 4)))
    found = matrix_of(lambda x: exponential(x, apply, 18), (3, 4, 4))
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(found @ found.T, np.eye(48), atol=1e-13)


@pytest.mark.parametrize("terms", [1, 4, 8])
def test_what_the_series_leaves_out(terms):
    """Of the worst matrix that is allowed, a rotation: norm 1."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    x = torch.eye(2, dtype=torch.float64)
    error = np.linalg.norm(exponential(x, lambda v: v @ turn.T, terms).T.numpy() - scipy.linalg.expm(turn.numpy()), 2)
    assert 0.5 / factorial(terms + 1) < error < 1.1 / factorial(terms + 1)
