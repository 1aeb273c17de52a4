"""Masks of weights against loops over their units."""

import pytest
import torch

from compresskit.numerics.pruning.masks import magnitude, of_units, taps_of, units_left

SHAPES = [(4, 3), (4, 3, 5), (5, 2, 3, 3), (3, 2, 2, 3, 2), (6, 1, 3, 3)]


def drawn(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_magnitude_is_the_power_mean_of_each_unit(shape, kernels, order):
    weight = drawn(shape)
    found = magnitude(weight, order, kernels=kernels).tolist()
    units = (
        weight.flatten(2).flatten(0, 1).tolist() if kernels and len(shape) > 2 else weight.flatten()[:, None].tolist()
    )
    wanted = [(sum(abs(w) ** order for w in unit) / len(unit)) ** (1 / order) for unit in units]
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernels", [False, True])
def test_the_mask_of_units_keeps_them_whole_and_no_other(shape, kernels):
    weight = drawn(shape)
    taps = taps_of(weight, kernels=kernels)
    assert taps == (weight[0, 0].numel() if kernels else 1)
    kept = drawn((weight.numel() // taps,)) > 0
    mask = of_units(kept, weight, kernels=kernels)
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    assert torch.equal(units_left(mask, kernels=kernels), kept * taps)
