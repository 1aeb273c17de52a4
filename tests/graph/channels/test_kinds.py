"""What kind of channel an atom is."""

from collections import Counter

import torch
from torch import nn

from compresskit.graph.channels.walk import Channels, find_channels
from compresskit.graph.trace import trace
from tests.graph.channels import families
from tests.graph.channels.test_walk import torchvision_net
from tests.graph.nets import Residual, make


def kinds(channels: Channels) -> Counter:
    return Counter(kind for atom, kind in enumerate(channels.kinds) if atom not in channels.frozen)


def of(channels: Channels, layer: str) -> set[str]:
    return {channels.kinds[atom] for atom in channels.writes[layer].tolist()}


def test_of_a_vision_transformer():
    network = trace(families.ViT())
    channels = find_channels(network, (3, 8, 8))
    assert kinds(channels) == {"width": 12, "hidden": 20, "head-dim": 6}
    assert of(channels, "attention.qkv") == {"head-dim"}
    assert of(channels, "mlp.fc1") == {"hidden"}
    assert of(channels, "embed") == of(channels, "attention.proj") == {"width"}
    assert kinds(find_channels(network, (3, 8, 8), "whole")) == {"width": 12, "hidden": 20, "heads": 2}


def test_one_head_has_positions_alone():
    channels = find_channels(trace(families.ViT(heads=1)), (3, 8, 8), "whole")
    assert kinds(channels) == {"width": 12, "hidden": 20, "head-dim": 12}


def test_norms_in_heads_are_no_width():
    channels = find_channels(trace(families.ViT(qk_norm=True)), (3, 8, 8))
    assert kinds(channels) == {"width": 12, "hidden": 20, "head-dim": 6}


def test_gated_units_are_hidden():
    channels = find_channels(trace(families.Llama()), (3, 6, 6))
    assert of(channels, "gate") == of(channels, "up") == {"hidden"}
    assert of(channels, "down") == of(channels, "o") == {"width"}


def test_a_convolutional_net_has_channels_alone():
    assert kinds(find_channels(trace(make(Residual)), (2, 8, 8))).keys() == {"channels"}
    assert kinds(find_channels(trace(torchvision_net("mobilenet_v2").eval()), (3, 32, 32))).keys() == {"channels"}


def test_the_last_layers_of_a_classifier_are_hidden_units():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 2))
    channels = find_channels(trace(net), (3, 6, 6))
    assert of(channels, "0") == {"channels"}
    assert of(channels, "3") == {"hidden"}


class Sums(nn.Module):
    """A residual stream without norms is not made of hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2, self.head = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.fc2(torch.relu(self.fc1(x))))


def test_a_sum_is_not_hidden():
    channels = find_channels(trace(Sums()), (3,))
    assert of(channels, "fc1") == {"hidden"}
    assert of(channels, "stem") == {"channels"}


class Response(nn.Module):
    """A mean over channels, by hand: of a stream, and of hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2, self.head = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.fc1(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))
        return self.head(x + self.fc2(y / (1 + y.mean(-1, keepdim=True))))


def test_norms_by_hand():
    channels = find_channels(trace(Response()), (3,))
    assert of(channels, "stem") == {"width"}
    assert of(channels, "fc1") == {"channels"}
    assert {norm.kind for norm in channels.norms.values()} == {"statistic"}
