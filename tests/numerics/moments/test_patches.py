import pytest
import torch
import torch.nn.functional as F

from compresskit.numerics.moments.patches import Patches, unfold

GEOMETRIES = [
    Patches((3,), (1,), (1,), ((1, 1),)),
    Patches((4,), (3,), (1,), ((2, 0),), groups=2),
    Patches((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    Patches((2, 5), (1, 2), (3, 1), ((0, 3), (2, 1)), groups=3),
    Patches((3, 1), (2, 3), (1, 2), ((-1, 4), (-2, -1)), groups=2),
]


@pytest.mark.parametrize("patches", GEOMETRIES, ids=str)
def test_weight_times_unfolded_is_the_convolution(patches: Patches) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (8, 9)[: len(patches.kernel)]
    x = torch.randn(2, 6, *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(12, 6 // patches.groups, *patches.kernel, dtype=torch.float64, generator=generator)
    padded = F.pad(x, [amount for pair in reversed(patches.padding) for amount in pair])
    convolution = F.conv1d if len(size) == 1 else F.conv2d
    expected = convolution(padded, weight, None, patches.stride, 0, patches.dilation, patches.groups)
    ours = torch.einsum("gof,ngfp->ngop", weight.reshape(patches.groups, -1, weight[0].numel()), unfold(x, patches))
    assert patches.positions(size) == expected.shape[2:]
    torch.testing.assert_close(ours.reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)


def test_a_map_that_no_window_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="enlarge the map or its padding"):
        Patches((5,), (1,), (1,), ((1, 0),)).positions((3,))


def test_geometry_of_mixed_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        Patches((3, 3), (1,), (1, 1), ((0, 0), (0, 0)))
    with pytest.raises(ValueError, match="at least 1"):
        Patches((3,), (0,), (1,), ((0, 0),))
