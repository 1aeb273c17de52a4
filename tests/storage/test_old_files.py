"""Files that version 0.1.0 wrote, one checkpoint for each kind of module of our own, are read as they were."""

import inspect
from pathlib import Path

import pytest
import torch

from compresskit.commands import cached_moments
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


@pytest.mark.skipif(
    "bias" not in inspect.signature(torch.nn.BatchNorm2d).parameters,
    reason="the identity of an entry has the options of modules, and this torch has fewer than the one that wrote it",
)
def test_a_cache_of_moments_is_taken_without_a_pass_over_the_data(monkeypatch):
    network, images = load(OLD / "plain.pt").network, MnistMini(limit=300).load(0).train.sample(200)
    request, cpu = find(network, ("conv1", "conv2"), IMAGES).request, torch.device("cpu")
    kept = CachedMoments(MomentCache(OLD, "fail", cpu), 1e9, 256, cpu, Group())
    monkeypatch.setattr(cached_moments, "collect", lambda *args, **kwargs: pytest.fail("the data were read again"))
    moments = kept.gather(network, [request], images)[request.name]
    assert moments.count == 200 * 14 * 14
    torch.testing.assert_close(moments.cxx[0].read().diagonal(), moments.cxx[0].diagonal(), rtol=0, atol=0)
