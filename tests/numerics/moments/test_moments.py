import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compresskit.numerics.moments import machine, patch_gram
from compresskit.numerics.moments.moments import Moments, MomentSums
from compresskit.numerics.moments.patches import Patches

Add = Callable[[Tensor, Tensor, Tensor, Tensor, Patches], None]

# kernel, stride, dilation, padding, groups, size
CONVOLUTIONS = [
    ((3,), (1,), (1,), ((1, 1),), 1, (7,)),
    ((4,), (1,), (2,), ((5, 0),), 2, (9,)),
    ((5,), (3,), (1,), ((2, 4),), 1, (11,)),
    ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, (6, 5)),
    ((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)), 2, (6, 5)),
    ((2, 5), (1, 1), (1, 1), ((0, 2), (3, 1)), 1, (4, 7)),
    ((5, 5), (1, 1), (1, 1), ((2, 2), (2, 2)), 1, (2, 1)),  # smaller than the ring
    ((3, 2), (1, 1), (2, 3), ((3, 1), (0, 4)), 4, (7, 6)),
    ((3, 3), (1, 1), (1, 1), ((-1, 2), (4, -2)), 1, (6, 7)),  # crops, and windows that meet no data
    ((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 1, (3, 4)),
    ((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), 1, (7, 8)),
    ((7, 4), (2, 3), (1, 1), ((3, 2), (5, 1)), 2, (9, 8)),
    ((2, 3), (3, 1), (1, 2), ((1, 0), (2, 2)), 1, (8, 6)),  # a kernel that stride leaves gaps behind
]
Geometry = tuple[Patches, tuple[int, ...]]
GEOMETRIES: list[Geometry] = [(Patches(*parts[:5]), parts[5]) for parts in CONVOLUTIONS]
WAYS: dict[str, Add] = {
    "chosen": patch_gram.add_patches,
    "direct": patch_gram.add_direct,
    "shifted": patch_gram.add_shifted,
}


def batch(patches: Patches, size: tuple[int, ...], images: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x with 4 and y with 8 channels, of nonzero means."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 4, *size, dtype=torch.float64, generator=generator) + 0.5
    y = torch.randn(images, 8, *patches.positions(size), dtype=torch.float64, generator=generator) - 0.3
    return x, y


def empty(patches: Patches) -> MomentSums:
    return MomentSums.zeros(4 // patches.groups * int(np.prod(patches.kernel)), 8, patches.groups)


def rows(x: Tensor, y: Tensor, patches: Patches) -> tuple[np.ndarray, np.ndarray]:
    """Patches (positions, G, F) and targets (positions, O), read pixel by pixel."""
    inputs, targets = [], []
    per_group = x.shape[1] // patches.groups
    for image, output in zip(x.numpy(), y.numpy(), strict=True):
        for position in product(*(range(n) for n in y.shape[2:])):
            patch = np.zeros((x.shape[1], *patches.kernel))
            for tap in product(*(range(k) for k in patches.kernel)):
                geometry = zip(position, patches.stride, tap, patches.dilation, patches.padding, strict=True)
                pixel = [p * s + a * d - before for p, s, a, d, (before, _) in geometry]
                limits = [(max(0, -a), n - max(0, -b)) for (a, b), n in zip(patches.padding, x.shape[2:], strict=True)]
                if all(low <= q < high for q, (low, high) in zip(pixel, limits, strict=True)):
                    patch[(slice(None), *tap)] = image[(slice(None), *pixel)]
            inputs.append(patch.reshape(patches.groups, per_group * int(np.prod(patches.kernel))))
            targets.append(output[(slice(None), *position)])
    return np.array(inputs), np.array(targets)


def assert_moments(moments: Moments, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Against inputs (n, G, F) and targets (n, O)."""
    n, groups, _ = inputs.shape
    x, y = inputs - inputs.mean(0), (targets - targets.mean(0)).reshape(n, groups, -1)
    assert moments.count == n
    np.testing.assert_allclose(moments.mean_x, inputs.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.mean_y, targets.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.cxx, np.einsum("ngf,ngh->gfh", x, x) / n, atol=1e-12)
    np.testing.assert_allclose(moments.cyx, np.einsum("ngo,ngf->gof", y, x) / n, atol=1e-12)
    np.testing.assert_allclose(moments.cyy, targets.var(0), atol=1e-12)
    assert moments.variance == pytest.approx(targets.var(0).sum(), rel=1e-12)


def assert_same(ours: MomentSums, theirs: MomentSums) -> None:
    ours.xx, theirs.xx = ours.xx.triu(), theirs.xx.triu()
    for name, tensor in ours.tensors().items():
        torch.testing.assert_close(tensor, theirs.tensors()[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("small", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_as_read_pixel_by_pixel(
    geometry: Geometry, way: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, size = geometry
    if small:
        monkeypatch.setattr(machine, "CPU", replace(machine.CPU, budget=1, tile=5))
    if way != "chosen":
        monkeypatch.setattr(patch_gram, "_cheapest", lambda *_: WAYS[way])
    x, y = batch(patches, size)
    sums = empty(patches)
    sums.add(x, y, patches)
    assert sums.images == len(x)
    assert_moments(sums.finish(), *rows(x, y, patches))


def test_stride_together_with_dilation_is_unfolded() -> None:
    patches = Patches((3, 2), (2, 1), (2, 2), ((2, 1), (0, 3)), 2)
    x, y = batch(patches, (9, 6))
    sums = empty(patches)
    sums.add(x, y, patches)
    assert_moments(sums.finish(), *rows(x, y, patches))


def test_the_cheaper_way_is_chosen() -> None:
    same = Patches((5, 5), (1, 1), (1, 1), ((2, 2), (2, 2)))
    assert patch_gram._cheapest(same, (16, 64, 32, 32), 64, machine.CPU) is patch_gram.add_shifted
    assert patch_gram._cheapest(same, (16, 64, 2, 2), 64, machine.CPU) is patch_gram.add_direct
    gaps = Patches((7, 7), (2, 1), (2, 1), ((6, 6), (3, 3)))
    assert patch_gram._cheapest(gaps, (64, 64, 32, 32), 64, machine.CPU) is patch_gram.add_direct
    pointwise = Patches((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    assert patch_gram._cheapest(pointwise, (16, 64, 32, 32), 64, machine.CPU) is patch_gram.add_direct


def test_linear_is_the_covariance_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, 7, n, dtype=torch.float64, generator=generator) for n in (6, 3))
    sums = MomentSums.zeros(6, 3)
    sums.add(x[:2], y[:2])
    sums.add(x[2:], y[2:])
    result = sums.finish()
    joint = np.cov(np.concatenate((x.flatten(0, 1), y.flatten(0, 1)), axis=1), rowvar=False, bias=True)
    np.testing.assert_allclose(result.cxx[0], joint[:6, :6], atol=1e-12)
    np.testing.assert_allclose(result.cyx[0], joint[6:, :6], atol=1e-12)
    np.testing.assert_allclose(result.cyy, joint.diagonal()[6:], atol=1e-12)


def test_float32_is_summed_in_float64() -> None:
    patches, size = GEOMETRIES[3]
    x, y = batch(patches, size)
    single, double = empty(patches), empty(patches)
    single.add(x.float(), y.float(), patches)
    double.add(x.float().double(), y.float().double(), patches)
    assert_same(single, double)


@settings(max_examples=25, deadline=None)
@given(geometry=st.sampled_from(GEOMETRIES), order=st.permutations(range(5)), cuts=st.sets(st.integers(1, 4)))
def test_merge_of_any_split_in_any_order_is_the_whole(geometry: Geometry, order: list[int], cuts: set[int]) -> None:
    patches, size = geometry
    x, y = batch(patches, size, images=5)
    whole, merged = empty(patches), empty(patches)
    whole.add(x, y, patches)
    bounds = [0, *sorted(cuts), 5]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        part = empty(patches)
        part.add(x[order[start:stop]], y[order[start:stop]], patches)
        merged = part.merge(merged)
    assert_same(merged, whole)


@settings(max_examples=25, deadline=None)
@given(geometry=st.sampled_from(GEOMETRIES), constant=st.floats(-3, 3), seed=st.integers(0, 99))
def test_covariance_is_symmetric_positive_and_blind_to_constants(
    geometry: Geometry, constant: float, seed: int
) -> None:
    patches, size = geometry
    # without padding, of which zeros are no part of the shift
    patches = Patches(patches.kernel, patches.stride, patches.dilation, ((0, 0),) * len(size), patches.groups)
    size = tuple(n + 6 for n in size)
    x, y = batch(patches, size, seed=seed)
    plain, moved = empty(patches), empty(patches)
    plain.add(x, y, patches)
    moved.add(x + constant, y - constant, patches)
    first, second = plain.finish(), moved.finish()
    torch.testing.assert_close(second.cxx, first.cxx, rtol=0, atol=1e-10)
    torch.testing.assert_close(second.cyx, first.cyx, rtol=0, atol=1e-10)
    torch.testing.assert_close(second.cyy, first.cyy, rtol=0, atol=1e-10)
    assert torch.equal(first.cxx, first.cxx.mT)
    assert float(torch.linalg.eigvalsh(first.cxx).min()) > -1e-12


def test_state_survives_saving_and_takes_a_reduction_in_place() -> None:
    patches, size = GEOMETRIES[4]
    sums, twice = empty(patches), empty(patches)
    sums.add(*batch(patches, size), patches)
    restored = MomentSums.from_tensors({name: tensor.clone() for name, tensor in sums.tensors().items()})
    assert (restored.count, restored.images) == (sums.count, sums.images)
    for tensor in restored.tensors().values():
        tensor.mul_(2)
    twice.add(*batch(patches, size), patches)
    twice.add(*batch(patches, size), patches)
    assert_same(restored, twice)


def test_sums_are_handed_over_once() -> None:
    with pytest.raises(ValueError, match="no samples"):
        MomentSums.zeros(2, 1).finish()
    sums = MomentSums.zeros(2, 1)
    sums.add(torch.ones(3, 2), torch.ones(3, 1))
    sums.finish()
    with pytest.raises(ValueError, match="finish only once"):
        sums.finish()


def test_shapes_that_disagree_are_refused() -> None:
    patches, size = GEOMETRIES[3]
    x, y = batch(patches, size)
    with pytest.raises(ValueError, match=r"\(3, 8, 6, 4\)"):
        empty(patches).add(x, y[..., 1:], patches)
    with pytest.raises(ValueError, match=r"\(3, 3, 6, 5\)"):
        empty(patches).add(x[:, 1:], y, patches)
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        MomentSums.zeros(3, 2).add(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="groups of equal size"):
        MomentSums.zeros(3, 2, groups=3)


PEAK = """
import sys, torch
from compresskit.numerics.moments import patch_gram
from compresskit.numerics.moments.moments import MomentSums
from compresskit.numerics.moments.patches import Patches

images, way = int(sys.argv[1]), getattr(patch_gram, sys.argv[2])
patch_gram._cheapest = lambda *_: way

def memory(name):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))

torch.set_num_threads(1)
x, y = torch.ones(images, 64, 32, 32), torch.ones(images, 64, 32, 32)
same = Patches((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
# so that the libraries' own memory is not counted
MomentSums.zeros(9 * 8, 8).add(x[:, :8], y[:, :8], same)
torch.ones(512, 1024, dtype=torch.float64) @ torch.ones(1024, 512, dtype=torch.float64)
before = memory("VmRSS")
sums = MomentSums.zeros(49 * 64, 64)
statistics = sum(tensor.nbytes for tensor in sums.tensors().values())
sums.add(x, y, Patches((7, 7), (1, 1), (1, 1), ((3, 3), (3, 3))))
sums.finish()
print(memory("VmHWM") - before, 1.5 * statistics + 8 * (x.numel() + y.numel()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("images", "way"), [(64, "add_shifted"), (4, "add_direct")])
def test_peak_memory_is_half_the_sums_and_one_batch_above_the_sums(images: int, way: str) -> None:
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(images), way], check=True, capture_output=True, text=True
    ).stdout
    used, allowed = (float(word) for word in output.split())
    assert used <= allowed, output
