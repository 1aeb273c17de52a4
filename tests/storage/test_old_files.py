"""Files that version 0.1.0 wrote, one checkpoint for each kind of module of our own, are read as they were."""

import shutil
from pathlib import Path

import h5py
import pytest
import torch

from compresskit.commands.cached_moments import CachedMoments
from compresskit.data.mini import MnistMini
from compresskit.distributed import Group
from compresskit.passes.fuse.fusible import find
from compresskit.storage.checkpoint import load
from compresskit.storage.moment_cache import MomentCache

OLD = Path(__file__).with_name("version_0_1_0")
IMAGES = (1, 28, 28)
# skew: SkewConvolution. windows: a small Swin. stack: GroupedStack. grouped: GroupedLinear, ChannelPermutation.
# masked: format 2, with masks. expanded: Expanded. plain, fused: layers of torch alone, and histories of verbs
SHAPES = {"skew": (2, 4, 4), "windows": (3, 8, 8), "stack": (4,)} | dict.fromkeys(
    ("plain", "fused", "masked", "expanded", "grouped"), IMAGES
)


@pytest.mark.parametrize("name", SHAPES)
def test_a_checkpoint_gives_the_outputs_that_it_gave(name):
    network = load(OLD / f"{name}.pt").network
    inputs = torch.randn(2, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    expected = torch.load(OLD / "outputs.pt", weights_only=True)[name]
    with torch.no_grad():
        # float32 on other processors and versions of torch; of numbers of about 1
        torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-5)


def test_masks_and_histories_are_there():
    masked = load(OLD / "masked.pt")
    assert [entry["verb"] for entry in masked.history] == ["train", "prune"]
    for name, mask in masked.masks.items():
        assert not masked.network.get_parameter(name)[~mask].any()
    assert {"conv1.weight", "conv2.weight"} <= masked.masks.keys()


def test_a_cache_of_moments_without_checksums_is_taken_anew(tmp_path):
    cache = tmp_path / "moments"
    cache.mkdir()
    (old,) = OLD.glob("*.h5")
    shutil.copy(old, cache)
    network, images = load(OLD / "plain.pt").network, MnistMini(limit=300).load(0).train.sample(200)
    request, cpu = find(network, ("conv1", "conv2"), IMAGES).request, torch.device("cpu")
    kept = CachedMoments(MomentCache(cache, "fail", cpu), 1e9, 256, cpu, Group())
    moments = kept.gather(network, [request], images)[request.name]
    with h5py.File(old) as file:
        torch.testing.assert_close(moments.cxx[0].read(), torch.from_numpy(file["cxx"][0]), rtol=1e-5, atol=1e-6)
