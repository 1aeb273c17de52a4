import numpy as np
import pytest
import torch

from compresskit.data.stored.normalization import identity, measure

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(150, 3, 4, 5), (150, 3, 7), (150, 6)])
def test_measure_equals_numpy(shape):
    # 150 samples: more than two chunks, the last one cut short; a mean far larger than the spread
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1000
    found = measure(inputs)
    axes = (0, *range(2, len(shape)))
    expected = inputs.numpy().astype(np.float64)
    np.testing.assert_allclose(found.mean, expected.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std(axes), rtol=1e-10)


def test_measured_bytes_come_out_with_mean_zero_and_deviation_one():
    inputs = torch.randint(256, (200, 2, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] //= 4
    normalization = measure(inputs)
    assert max(normalization.mean) < 1
    batch = normalization.on(CPU, inputs)(inputs)
    assert batch.dtype == torch.float32
    # the batch is float32
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_a_constant_channel_stays_finite():
    inputs = torch.full((10, 2), 5.0)
    inputs[:, 1] = torch.arange(10)
    normalization = measure(inputs)
    assert normalization.std[0] == 1
    assert torch.equal(normalization.on(CPU, inputs)(inputs)[:, 0], torch.zeros(10))


def test_identity_divides_only_bytes():
    floats = torch.randn(4, 3)
    assert torch.equal(identity(3).on(CPU, floats)(floats), floats)
    white = torch.full((4, 3), 255, dtype=torch.uint8)
    assert torch.equal(identity(3).on(CPU, white)(white), torch.ones(4, 3))


def test_the_batch_is_not_changed_in_place():
    floats = torch.ones(4, 3)
    measure(torch.arange(12.0).view(4, 3)).on(CPU, floats)(floats)
    assert torch.equal(floats, torch.ones(4, 3))
