"""Channel atoms and cutting: a net without some atoms equals the net whose readers have zeros for them."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from compresskit.errors import UnsupportedModelError
from compresskit.graph.channels.cut import cut, select_inputs
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from tests.graph.channels.law import check_law, random_alive, zeroed
from tests.graph.nets import Depthwise, Plain, Residual, Shared, batch, make


class Shuffled(nn.Module):
    """Channel shuffle as nets write it, a concatenation, a chunk and sizes written as numbers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 12, 1, groups=2)
        self.slope = nn.PReLU(12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x):
        a, b = F.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([self.left(a), b], 1)
        x = x.view(x.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)
        x = self.slope(self.grouped(self.norm(self.depthwise(x))))
        return self.head(F.adaptive_avg_pool2d(x, 2).view(-1, 48))


class Excited(nn.Module):
    """Squeeze and excitation, a scale for each channel, a split of unequal parts, and a mean over positions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.squeeze = nn.Conv2d(6, 2, 1)
        self.excite = nn.Conv2d(2, 6, 1)
        self.scale = nn.Parameter(torch.randn(6, 1, 1))
        self.wide = nn.Conv2d(6, 7, 1)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        a, b = torch.split(self.wide(x * gate * self.scale), [3, 4], dim=1)
        return self.a(a.mean([2, 3])) + self.b(b.mean([2, 3]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise])
def test_small_nets(kind, seed):
    assert check_law(kind(), batch(kind), seed) > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [Shuffled, Excited])
def test_nets_that_move_channels(kind, seed):
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    assert check_law(kind(), x, seed) > 0


FAMILIES = {  # input size: what the smallest feature map needs
    "resnext50_32x4d": 32, "densenet121": 32, "mobilenet_v3_small": 32,
    "shufflenet_v2_x0_5": 32, "googlenet": 32, "efficientnet_b0": 32, "regnet_y_400mf": 32, "convnext_tiny": 32,
}  # fmt: skip
MORE = {
    "alexnet": 64, "vgg11_bn": 32,
    "resnet18": 32, "mobilenet_v2": 32, "squeezenet1_1": 64, "inception_v3": 96, "mnasnet0_5": 32, "vit_b_16": 224,
    "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224, "efficientnet_v2_s": 32, "regnet_x_400mf": 32,
}  # fmt: skip


def torchvision_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_torchvision(name):
    size = FAMILIES[name]
    assert check_law(torchvision_net(name), torch.randn(2, 3, size, size, dtype=torch.float64)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_families_of_torchvision(name):
    size = MORE[name]
    assert check_law(torchvision_net(name), torch.randn(2, 3, size, size, dtype=torch.float64)) > 100


def test_what_goes_together_in_a_residual_net():
    channels = find_channels(trace(make(Residual)), (2, 8, 8))
    assert torch.equal(channels.writes["stem"], channels.writes["block1.conv2"])  # they meet in the sum
    assert torch.equal(channels.writes["block2.conv2"], channels.writes["block2.shortcut"])
    assert torch.equal(channels.reads["block1.conv1"], channels.writes["stem"])
    assert set(channels.inputs.tolist()) == set(channels.reads["stem"].tolist())
    assert {channels.frozen[atom] for atom in channels.inputs.tolist()} == {"it is the network's input"}
    assert {channels.frozen[atom] for atom in channels.writes["head"].tolist()} == {"it is the network's output"}
    assert len(channels.frozen) == 2 + 3


def test_a_flattened_map_gives_each_channel_to_all_its_features():
    channels = find_channels(trace(make(Plain)), (2, 8, 8))
    assert torch.equal(channels.reads["fc1"], channels.writes["conv2"].repeat_interleave(16))


def test_grouped_convolutions_lose_alike_in_every_group():
    channels = find_channels(trace(make(Depthwise)), (4, 8))
    first, second = channels.reads["conv2"].view(2, 2)
    assert torch.equal(first, second)
    assert torch.equal(channels.writes["conv1"], channels.reads["conv2"])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.LogSoftmax(-1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc2(self.norm(self.fc1(x)))


def test_what_is_frozen_says_why():
    channels = find_channels(trace(Normed()), (4,))
    assert {channels.frozen[atom] for atom in channels.writes["fc1"].tolist()} == {
        "norm: LogSoftmax mixes channels, or is not known"
    }
    shared = find_channels(trace(make(Shared)), (4,))
    assert {shared.frozen[atom] for atom in shared.reads["fc"].tolist()} == {"it is the network's input"}
    assert torch.equal(shared.reads["fc"], shared.writes["fc"])


def test_refusals():
    network = trace(make(Plain))
    channels = find_channels(network, (2, 8, 8))
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.inputs[0]] = False
    with pytest.raises(ValueError, match="must stay: it is the network's input"):
        cut(network, channels, alive)
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.writes["conv2"]] = False
    with pytest.raises(UnsupportedModelError, match=r"conv2.weight: none of its 4 channels would be left"):
        cut(network, channels, alive)


def test_the_network_itself_stays_as_it_was():
    network = trace(make(Plain))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    channels = find_channels(network, (2, 8, 8))
    cut(network, channels, random_alive(channels, 0))
    select_inputs(network, {"conv2": torch.tensor([0, 2])})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not hasattr(network, "conv2_inputs")


@pytest.mark.parametrize(("layer", "kept"), [("conv2", [0, 2]), ("fc1", [1, 5, 6, 40, 63]), ("conv1", [1])])
def test_a_layer_reads_a_selection(layer, kept):
    network = trace(make(Plain))
    selected = select_inputs(network, {layer: torch.tensor(kept)})
    expected = copy.deepcopy(network)
    weight = expected.get_submodule(layer).weight
    mask = torch.zeros(weight.shape[1], dtype=torch.bool)
    mask[kept] = True
    with torch.no_grad():
        weight[:, ~mask] = 0
    x = batch(Plain)
    torch.testing.assert_close(selected(x), expected(x))
    assert selected.get_submodule(layer).weight.shape[1] == len(kept)
    before, after = count(network, (2, 8, 8)), count(selected, (2, 8, 8))
    saved = (weight.shape[1] - len(kept)) * weight[:, 0].numel()
    assert before.parameters - after.parameters == saved
    assert before.macs - after.macs == saved * (1 if weight.ndim == 2 else 64 if layer == "conv1" else 16)


@pytest.mark.parametrize("seed", range(4))
def test_a_net_with_selections_is_cut_again(seed):
    kept = {"block2.conv1": torch.tensor([0, 2, 3]), "block2.shortcut": torch.tensor([1, 3])}
    network = select_inputs(trace(make(Residual)), kept)
    channels = find_channels(network, (2, 8, 8))
    assert set(channels.reads["block2.conv1"].tolist()) <= set(channels.writes["stem"].tolist())
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.writes["stem"][seed]] = False
    x = batch(Residual)
    expected = zeroed(network, channels, alive)(x)
    torch.testing.assert_close(cut(network, channels, alive)(x), expected)


class Joined(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.one, self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 5, 1)
        self.join = join

    def forward(self, x):
        x = self.one(x)
        return self.last(self.join(x, self.other(x))).mean((2, 3))


JOINS = {
    "dim": lambda x, y: torch.cat([x, y], dim=1),
    "place": lambda x, y: torch.cat((x, y), -3),
    "axis": lambda x, y: torch.cat([x, y], axis=1),
    "tensors": lambda x, y: torch.cat(tensors=[x, y], dim=1),
    "concat": lambda x, y: torch.concat([x, y], dim=1),
}


@pytest.mark.parametrize("name", JOINS)
def test_concatenation_however_it_is_written(name):
    network = trace(Joined(JOINS[name]))
    channels = find_channels(network, (3, 6, 6))
    assert torch.equal(channels.reads["last"], torch.cat([channels.writes["one"], channels.writes["other"]]))
    assert len(channels.reads["last"].unique()) == 16


class Bare(nn.Module):
    """A norm without tensors over channels of two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6, elementwise_affine=False)
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x):
        return self.heads[0](self.norm(self.first(x))) + self.heads[1](self.norm(self.second(x)))


def test_a_norm_without_tensors_that_is_called_twice_stops_both():
    channels = find_channels(trace(make(Bare)), (4,))
    for layer in ("first", "second"):
        assert {channels.frozen[atom] for atom in channels.writes[layer].tolist()} == {"norm: it is called 2 times"}
