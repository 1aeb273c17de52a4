"""Outputs of any structure: how far two are apart, against sums by hand."""

import pytest
import torch

from compresskit.numerics.outputs import (
    Spread,
    doubled,
    largest_difference,
    mean_relative_error,
    relative_error,
    tensors_of,
)


def structured(seed: int):
    draws = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 2, 4, 4, generator=draws).double()
    return {"maps": [maps, 10 * torch.randn(3, 5, generator=draws).double()], "count": torch.tensor([3]), "name": "a"}


def by_hand(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Loops over channels: the squared error of all values, over the mean of the channels' variances."""
    error, variances = 0.0, []
    for channel in range(expected.shape[1]):
        values = expected[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        variances.append(sum((value - mean) ** 2 for value in values) / len(values))
        pairs = zip(found[:, channel].flatten().tolist(), values, strict=True)
        error += sum((one - other) ** 2 for one, other in pairs) / len(values)
    return error / expected.shape[1] / (sum(variances) / len(variances))


def test_each_tensor_counts_alike_as_a_share_of_its_variance():
    found, expected = structured(0), structured(1)
    parts = [by_hand(one, other) for one, other in zip(found["maps"], expected["maps"], strict=True)]
    assert float(mean_relative_error(found, expected)) == pytest.approx(sum(parts) / 2, rel=1e-12)
    assert float(mean_relative_error(expected, expected)) == 0
    scaled = {**expected, "maps": [1000 * one for one in expected["maps"]]}
    other = {**found, "maps": [1000 * one for one in found["maps"]]}
    assert float(mean_relative_error(other, scaled)) == pytest.approx(sum(parts) / 2, rel=1e-12)


def test_channels_lie_along_any_dimension():
    draws = torch.Generator().manual_seed(5)
    found, expected = (torch.randn(3, 4, 5, generator=draws) + 10 for _ in range(2))  # as tokens have them: (N, T, C)
    turned = by_hand(found.movedim(2, 1), expected.movedim(2, 1))
    for dim in (2, -1):
        # the difference is float32
        assert float(relative_error(found, expected, dim)) == pytest.approx(turned, rel=1e-6)


def test_a_value_a_sample_and_a_single_number_have_a_share_too():
    expected = torch.tensor([1.0, 3.0])
    assert float(mean_relative_error(expected + 2, expected)) == pytest.approx(4 / 1)
    assert float(mean_relative_error(torch.tensor(3.0), torch.tensor(2.0))) == pytest.approx(1 / (1e-3 * 4))


def test_the_largest_difference_is_over_all_tensors():
    found = structured(0)
    other = doubled(structured(0))
    other["maps"][1][2, 3] += 7.0
    assert largest_difference(found, other) == pytest.approx(7.0)
    assert largest_difference(found, found) == 0
    assert largest_difference({"nothing": []}, {"nothing": []}) == 0
    with pytest.raises(ValueError, match="shorter"):
        largest_difference(found, found["maps"][:1])


def test_structure_and_what_is_no_tensor_stay():
    value = ({"a": torch.ones(2), "b": torch.arange(2)}, [None, "text", 3])
    made = doubled(value)
    assert made[0]["a"].dtype == torch.float64
    assert made[0]["b"].dtype == torch.int64
    assert made[1] == [None, "text", 3]
    assert len(tensors_of(value)) == 1


def test_an_error_by_the_spread_of_all_that_was_added():
    draws = torch.Generator().manual_seed(3)
    values = [(torch.randn(6, 4, 3, generator=draws) + 5, torch.randn(6, generator=draws)) for _ in range(2)]
    right, found = ([torch.cat(parts) for parts in zip(*halves, strict=True)] for halves in (values, values[::-1]))
    spread = Spread()
    for part in values:
        spread.add(part)
    expected = mean_relative_error(found, right)
    assert float(spread.error(found, right)) == pytest.approx(float(expected), rel=1e-5)
    assert float(spread.error(right, right)) == 0


def test_a_tensor_of_other_channels_has_no_spread():
    spread = Spread()
    spread.add([torch.ones(2, 4)])
    with pytest.raises(ValueError, match="4 channels .* on one batch and 5 on another"):
        spread.add([torch.ones(2, 5)])
