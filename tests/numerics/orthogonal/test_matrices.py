"""Random orthogonal matrices, delta kernels and the form for ReLU."""

import numpy as np
import pytest
import torch

from compresskit.numerics.orthogonal.matrices import delta, looks_linear, looks_linear_entry, orthogonal, unitary

SIDES = [(1, 1), (5, 5), (3, 8), (8, 3), (64, 64)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("draw", [orthogonal, unitary])
@pytest.mark.parametrize(("rows", "columns"), SIDES)
def test_the_shorter_side_is_orthonormal(draw, rows, columns, generator):
    matrix = draw(rows, columns, generator).numpy()
    assert matrix.shape == (rows, columns)
    gram = matrix @ matrix.conj().T if rows <= columns else matrix.conj().T @ matrix
    np.testing.assert_allclose(gram, np.eye(min(rows, columns)), atol=1e-13)


def test_types(generator):
    assert orthogonal(2, 2, generator).dtype == torch.float64
    assert unitary(2, 2, generator).dtype == torch.complex128


@pytest.mark.parametrize("draw", [orthogonal, unitary])
def test_a_batch_holds_different_matrices(draw, generator):
    first, second = draw(3, 5, generator, batch=2).numpy()
    for matrix in (first, second):
        np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-13)
    assert np.abs(first - second).max() > 0.1


def test_the_same_generator_gives_the_same_matrix():
    first, second = (orthogonal(4, 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.equal(second)


def test_haar_measure():
    """Of Haar's measure a diagonal entry is symmetric about 0 with variance 1 / n; plain QR would make it negative."""
    matrices = orthogonal(4, 4, torch.Generator().manual_seed(0), batch=20000)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    assert diagonal.mean(0).abs().max() < 0.02  # 5.6 standard errors
    assert (diagonal.square().mean(0) - 1 / 4).abs().max() < 0.015  # of 0.0018 each
    assert (torch.linalg.det(matrices) > 0).double().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("taps", [(3,), (3, 3), (2, 4), (5, 1), ()])
def test_delta_has_the_matrix_in_the_middle(taps, generator):
    matrix = orthogonal(3, 4, generator)
    kernel = delta(matrix, taps)
    assert kernel.shape == (3, 4, *taps)
    assert kernel.flatten(2).sum(2).equal(matrix) if taps else kernel.equal(matrix)
    assert kernel[(..., *((k - 1) // 2 for k in taps))].equal(matrix)


@pytest.mark.parametrize("taps", [(3, 3), (2, 4), (1, 5)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_delta_kernels_apply_the_matrix_at_every_position(taps, generator):
    matrix = orthogonal(6, 6, generator)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=generator)
    y = torch.nn.functional.conv2d(x, delta(matrix, taps), padding="same")
    expected = np.einsum("oi,bihw->bohw", matrix.numpy(), x.numpy())
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-13)


def test_looks_linear_written_out():
    matrix = torch.tensor([[1.0, 2.0]])
    assert looks_linear(matrix).tolist() == [[1, 2, -1, -2], [-1, -2, 1, 2]]
    assert looks_linear_entry(matrix).tolist() == [[1, 2], [-1, -2]]


def test_layers_that_look_linear_keep_lengths_through_relu(generator):
    """Entry, five layers with ReLU: the difference of halves is an orthogonal function of the input."""
    x = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    y = torch.relu(x @ looks_linear_entry(orthogonal(8, 8, generator)).T)
    for _ in range(5):
        y = torch.relu(y @ looks_linear(orthogonal(8, 8, generator)).T)
    np.testing.assert_allclose(y.norm(dim=1), x.norm(dim=1), atol=1e-12)
    assert (y[:, :8] * y[:, 8:]).abs().max() == 0  # max(z, 0) and max(-z, 0)


def test_singular_values_of_what_looks_linear(generator):
    values = torch.linalg.svdvals(looks_linear(orthogonal(3, 4, generator)))
    np.testing.assert_allclose(values, [2, 2, 2, 0, 0, 0], atol=1e-12)
