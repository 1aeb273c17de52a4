"""Kernels made orthogonal in the Fourier domain, and singular values of convolutions, against whole matrices."""

import itertools

import numpy as np
import pytest
import torch

from compresskit.numerics.orthogonal.fourier_kernels import explicit_kernel, singular_values
from compresskit.numerics.orthogonal.matrices import orthogonal, unitary
from compresskit.numerics.sparse.ramanujan import blocks


def drawing(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda is_complex: (unitary if is_complex else orthogonal)(rows, columns, generator)


def operator(weight, size, dilation):
    """The whole matrix (out x positions, in x positions) of a cyclic convolution, tap by tap."""
    out, inner, *taps = weight.shape
    matrix = np.zeros((out, *size, inner, *size))
    for place in itertools.product(*map(range, size)):
        for tap in itertools.product(*map(range, taps)):
            source = tuple((p + t * d) % n for p, t, d, n in zip(place, tap, dilation, size, strict=True))
            matrix[(slice(None), *place, slice(None), *source)] += weight[(..., *tap)]
    return matrix.reshape(out * np.prod(size), inner * np.prod(size))


@pytest.mark.parametrize(
    ("shape", "size", "dilation"),
    [((2, 3, 3, 3), (5, 4), (1, 1)), ((3, 2, 2, 3), (6, 5), (2, 1)), ((2, 2, 3), (7,), (2,)), ((2, 2, 5), (3,), (1,))],
)
def test_singular_values_are_those_of_the_whole_matrix(shape, size, dilation):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = np.sort(singular_values(weight, size, dilation).numpy().ravel())
    expected = np.linalg.svd(operator(weight.numpy(), size, dilation), compute_uv=False)
    np.testing.assert_allclose(found, np.sort(expected)[-len(found) :], atol=1e-12)
    assert len(found) == min(shape[0], shape[1]) * np.prod(size)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6), (6, 3), (1, 1)])
@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (3,)])
def test_explicit_kernels_are_orthogonal_dilated_over_the_map(rows, columns, taps):
    kernel = explicit_kernel(taps, drawing(rows, columns))
    assert kernel.shape == (rows, columns, *taps)
    for times in (1, 2, 3):
        values = singular_values(kernel, tuple(k * times for k in taps), (times,) * len(taps))
        assert (values - 1).abs().max() < 1e-12


def test_explicit_kernels_are_orthogonal_as_a_whole_matrix():
    kernel = explicit_kernel((2, 2), drawing(3, 3)).numpy()
    matrix = operator(kernel, (4, 4), (2, 2))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(48), atol=1e-12)


def test_without_the_dilation_they_are_not():
    kernel = explicit_kernel((3, 3), drawing(4, 4))
    assert (singular_values(kernel, (6, 6)) - 1).abs().max() > 0.1


@pytest.mark.parametrize(("taps", "count"), [(3, 5), (5, 13), (2, 4), (4, 10), (1, 1)])
def test_number_of_matrices(taps, count):
    """(k^2 + 1) / 2 for odd k, (k^2 + 4) / 2 for even k: SAO, section IV-C."""
    drawn = []

    def draw(is_complex):
        drawn.append(is_complex)
        return drawing(2, 2)(is_complex)

    explicit_kernel((taps, taps), draw)
    assert len(drawn) == count
    assert drawn.count(False) == (1 if taps % 2 else 4)  # those that are their own mirror image


def test_nothing_imaginary_is_thrown_away():
    """The kernel's transform is made of the drawn matrices: had the mirror images not been conjugates, it were not."""
    drawn = []

    def draw(is_complex):
        drawn.append(drawing(3, 3, len(drawn))(is_complex))
        return drawn[-1]

    transform = torch.fft.fftn(explicit_kernel((3, 3), draw), dim=(2, 3))
    for number, (p, q) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]):
        assert (transform[:, :, p, q] - drawn[number]).abs().max() < 1e-12
        assert (transform[:, :, -p, -q] - drawn[number].conj()).abs().max() < 1e-12


def test_linear_layers_have_one_frequency():
    drawn = drawing(3, 5)(False)
    assert explicit_kernel((), drawing(3, 5)).equal(drawn)


def test_sparse_matrices_give_sparse_kernels():
    generator = torch.Generator().manual_seed(0)
    where = blocks(8, 8, 4, "shuffle", generator)

    def draw(is_complex):
        return where.filled((unitary if is_complex else orthogonal)(2, 2, generator, batch=4))

    kernel = explicit_kernel((3, 3), draw)
    assert (kernel.flatten(2).abs().amax(2) > 1e-12).equal(where.mask())
    assert (singular_values(kernel, (6, 6), (2, 2)) - 1).abs().max() < 1e-12
