"""What a size is said to be before the cut is what the cut network has."""

import pytest
import torch
from torch import nn

from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.passes.prune.sizes import CutSizes
from tests.graph.channels import families
from tests.graph.channels.law import random_alive
from tests.graph.channels.test_families import IMAGES, image


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x).flatten(2)
        return self.fc(torch.einsum("nct,nct->nc", x, x))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.swin_transformer import SwinTransformer

        self.net = SwinTransformer([2, 2], 8, [2, 2], [2, 4], [3, 3], num_classes=5)

    def forward(self, x):
        return self.net(x)


def check(net: nn.Module, shape: tuple[int, ...], seed: int, heads) -> int:
    network = trace(net.eval(), shape)
    channels = find_channels(network, shape, heads)
    alive = random_alive(channels, seed)
    sizes, small = CutSizes(network, channels, shape), count(cut(network, channels, alive), shape)
    whole, everything = count(network, shape), torch.ones_like(alive)
    assert sizes("macs", everything) == pytest.approx(whole.macs, rel=1e-12)
    assert sizes("params", everything) == whole.parameters
    assert sizes("params", alive) == small.parameters
    assert sizes("macs", alive) == pytest.approx(small.macs, rel=1e-12)
    return whole.macs - small.macs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("heads", ["positions", "whole"])
@pytest.mark.parametrize("name", IMAGES)
def test_sizes_are_those_of_the_cut_network(name, heads, seed):
    torch.manual_seed(seed)
    assert check(IMAGES[name](), tuple(image(name).shape[1:]), seed, heads) > 0


@pytest.mark.parametrize("heads", ["positions", "whole"])
@pytest.mark.parametrize(
    ("make", "shape"), [(families.Gpt, (6,)), (Swin, (3, 16, 16)), (Swin, (3, 20, 12)), (Einsum, (3, 5, 5))]
)
def test_sizes_of_other_nets(make, shape, heads):
    torch.manual_seed(0)
    check(make(), shape, 0, heads)
