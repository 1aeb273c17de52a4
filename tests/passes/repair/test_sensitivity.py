"""What cuts alone cost, against cutting, repairing and measuring each of them."""

import pytest
import torch

from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.passes.moments import gather_from
from compresskit.passes.prune.groups import find_groups
from compresskit.passes.repair.layers import repair
from compresskit.passes.repair.sensitivity import Sensitivity
from tests.passes.prune.test_families import batches, network_of


def divergence(found, expected):
    return (found - expected).square().mean()


@pytest.mark.parametrize(
    ("name", "solved"), [("unet", True), ("groups", True), ("unet", False), ("convnext", False), ("vit", False)]
)
def test_each_cut_alone_as_by_cutting_and_repairing(name, solved):
    network, shape = network_of(name)
    channels, data = find_channels(network, shape), batches(name)
    gather = gather_from(data)
    cuts = []
    for group in find_groups(network, channels, ["re:.*"])[0][:4]:
        own = []
        for share in (2, 3):
            alive = torch.ones(channels.n_atoms, dtype=torch.bool)
            alive[group.atoms[1::share]] = False
            own.append(alive)
        cuts.append(own)
    told = []
    judge = Sensitivity(network, channels, shape, gather, lambda: (x for x, _ in data), divergence, solved)
    found = judge.losses(cuts, lambda: told.append(1))
    assert len(told) == len(cuts)
    with torch.no_grad():
        for own, losses in zip(cuts, found, strict=True):
            for alive, loss in zip(own, losses, strict=True):
                smaller = cut(network, channels, alive)
                if solved:
                    fixed = repair(network, channels, alive, gather, shape, chained=False)
                    smaller = cut(fixed.network, channels, alive)
                smaller.eval()
                errors = [float(divergence(smaller(x).double(), network(x).double())) * len(x) for x, _ in data]
                # ridges are those of the first cut; norms over groups of channels change what the others read
                near = 0.03 if solved and (name == "groups" or alive is not own[0]) else 1e-3
                assert loss == pytest.approx(sum(errors) / sum(len(x) for x, _ in data), rel=near, abs=1e-9)
