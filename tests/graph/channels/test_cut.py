"""Nets that users write in odd ways: cut, they equal the net with zeros; and what must stay is frozen, not broken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresskit.graph.channels.cut import cut, select_inputs
from compresskit.graph.channels.walk import Channels, find_channels
from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, load, save
from tests.graph.channels.law import check_law, zeroed
from tests.graph.channels.test_walk import torchvision_net
from tests.graph.nets import Plain, make


class Odd(nn.Module):
    """conv, something odd that gives 8 channels again, conv, linear."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(5, 8, 1)
        self.gate, self.slope = nn.Conv2d(8, 1, 1), nn.PReLU()
        self.shuffle, self.unflatten = nn.ChannelShuffle(2), nn.Unflatten(1, (2, 4))
        self.temperature, self.place = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, 1, 6, 6))
        self.gain, self.shift = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.7))
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.register_buffer("quarter", torch.tensor(0.25))
        self.register_buffer("three", torch.tensor(3))
        self.register_buffer("mask", (torch.arange(8) % 3 > 0).view(8, 1, 1))
        self.register_buffer("number", 100 + torch.arange(8).view(8, 1, 1))
        self.register_buffer("order", torch.tensor([7, 0, 3, 2, 5]))
        self.register_buffer("zeros", torch.zeros(1, 8, 6, 6))

    def forward(self, x):
        return self.head(self.last(self.odd(F.relu(self.stem(x)))).mean((2, 3)))

    def parts(self, parts):
        return self.left(parts[0]) + self.right(parts[1])


ODD = {
    "mask of booleans": lambda net, x: x * net.mask,
    "scale of integers": lambda net, x: x * net.number,
    "number as a parameter": lambda net, x: x * net.temperature.exp(),
    "gain of no dimensions": lambda net, x: x + net.gain * F.relu(x - 1),
    "two numbers": lambda net, x: torch.mul(x, net.gain) + net.shift,
    "number of two numbers": lambda net, x: x * (net.gain * net.shift).exp() * torch.stack([net.gain, net.shift]).sum(),
    "numbers in buffers": lambda net, x: x * net.quarter / net.three,
    "number that stops a value": lambda net, x: torch.lerp(torch.clamp(x, min=net.gain), x, net.quarter),
    "number out of a scale": lambda net, x: x * net.scale.mean(),
    "scale to a power": lambda net, x: net.scale * (1 + x) ** net.gain - 1,
    "table that is scaled": lambda net, x: x + net.gain * net.zeros * net.temperature,
    "parameter of positions": lambda net, x: x + net.place,
    "gate of one channel": lambda net, x: x * torch.sigmoid(net.gate(x)),
    "slope called twice": lambda net, x: net.slope(net.slope(x) - 1),
    "type of another tensor": lambda net, x: x.type_as(x.mean((2, 3))),
    "unequal parts": lambda net, x: net.parts(torch.split(x, [3, 5], dim=1)),
    "unequal parts by keyword": lambda net, x: net.parts(x.split(split_size=[3, 5], dim=1)),
    "a part of one channel": lambda net, x: torch.cat(x.split([1, 7], dim=1)[::-1], 1),
    "parts of a number": lambda net, x: net.parts(x.split(5, 1)[::-1]),
    "computed rows": lambda net, x: x.view(x.shape[0], x.shape[1] // 4, 4, 6, 6).transpose(1, 2).reshape(x.shape),
    "computed columns": lambda net, x: x.view(x.shape[0], 4, x.shape[1] // 4, 6, 6).transpose(1, 2).reshape(x.shape),
    "unflattened": lambda net, x: net.unflatten(x).transpose(1, 2).flatten(1, 2),
    "unflattened, counted from the end": lambda net, x: x.unflatten(-3, (2, 4)).transpose(1, 2).flatten(1, 2),
    "unflattened by keyword": lambda net, x: torch.unflatten(x, dim=1, sizes=(2, 4)).flatten(1, 2),
    "reshaped by keyword": lambda net, x: torch.reshape(x, shape=(-1, 8, 36)).view(size=(-1, 8, 6, 6)),
    "expanded by keyword": lambda net, x: x * net.scale.expand(size=(1, 8, 6, 6)),
    "mean by keyword": lambda net, x: x + torch.mean(input=x, dim=(2, 3), keepdim=True),
    "pooled by keyword": lambda net, x: x + F.adaptive_avg_pool2d(input=x, output_size=1),
    "selected by keyword": lambda net, x: net.right(torch.index_select(input=x, dim=1, index=net.order)),
    "shuffled": lambda net, x: net.shuffle(x),
    "number of channels": lambda net, x: x / x.shape[1],
    "number of channels, a method": lambda net, x: x * x.size(1) ** -0.5,
    "number of half the channels": lambda net, x: (
        x.view(-1, 2, x.shape[1] // 2, 6, 6).mean(1).repeat(1, 2, 1, 1) / (x.shape[1] // 2)
    ),
    "shape of another tensor": lambda net, x: torch.flatten(x, 2).reshape((x + 1).shape) + net.zeros,
    "choice by value": lambda net, x: torch.where(x > 1, x, net.gain),
    "constant maps": lambda net, x: x + torch.cat([x, net.zeros + x], 1).chunk(2, 1)[1],
    "mean of everything": lambda net, x: x / x.mean(),
    "norm by hand": lambda net, x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt() * net.scale,
    "response norm": lambda net, x: x / (1 + torch.mean(x.norm(p=2, dim=(2, 3), keepdim=True), dim=1, keepdim=True)),
    "maximum and sum": lambda net, x: x * torch.amax(x, 1, keepdim=True) + x.sum(1)[:, None] / 8,
    "halves in brackets": lambda net, x: torch.cat([x[:, 5:] + 1, x[:, :3] * 2, x[:, 3:5]], 1),
    "halves that are computed": lambda net, x: torch.cat(
        [x[:, : x.shape[1] // 2] * x[..., x.shape[1] // 2 :, :, :], x[..., 4:8, :, :]], 1
    ),
    "every other channel": lambda net, x: torch.stack([x[:, 1::2], -x[:, ::2]], 2).reshape(x.shape),
    "shape as another": lambda net, x: net.slope(x.flatten(2)).reshape_as(x),
    "rolled and repeated": lambda net, x: x.roll((1, 2), (2, -1)).repeat_interleave(2, dim=3)[..., ::2].flip(-1),
    "size of a map": lambda net, x: x / (x.shape[2] * x.shape[3]),
}
FROZEN = {
    "number of channels and samples": (lambda net, x: x / x.numel(), "with the number of channels and of samples"),
    "unequal chunks": (lambda net, x: torch.cat(x.chunk(3, 1)[::-1], 1), "splits channels into are unequal"),
    "indices read twice": (
        lambda net, x: net.right(torch.index_select(x, 1, net.order) + torch.index_select(x * 2, 1, net.order)),
        "it picks channels by their number",
    ),
    "indices in brackets": (lambda net, x: net.right(x[:, net.order]), "it picks channels by their number"),
    "sorted": (lambda net, x: x.topk(8, 1)[0], "topk mixes channels, or is not known"),
    "written in another way": (lambda net, x: x.view(x.dtype), "labels cannot be"),
}


def odd(function) -> nn.Module:
    return type("OddNet", (Odd,), {"odd": function})()


def batch() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def free(channels: Channels, layer: str) -> int:
    return len(set(channels.writes[layer].tolist()) - set(channels.frozen))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ODD)
def test_odd_nets(name, seed):
    torch.manual_seed(seed)
    check_law(odd(ODD[name]), batch(), seed)
    channels = find_channels(trace(odd(ODD[name]).double()), (3, 6, 6))
    assert free(channels, "stem") >= 4  # the law says nothing of what is frozen


class Unflattened(nn.Module):
    def __init__(self, dim, sizes):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)
        self.unflatten, self.flatten = nn.Unflatten(dim, sizes), nn.Flatten(2)

    def forward(self, x):
        return self.last(self.flatten(self.unflatten(self.first(x))))


@pytest.mark.parametrize("sizes", [(2, 4), (4, 2), (2, 2, 2), (-1, 4)])
@pytest.mark.parametrize("dim", [-1, 2])
def test_sizes_count_from_where_the_value_ends(dim, sizes):
    torch.manual_seed(0)
    assert check_law(Unflattened(dim, sizes), torch.randn(2, 5, 3, dtype=torch.float64)) > 0


@pytest.mark.parametrize("name", FROZEN)
def test_what_would_break_is_frozen(name):
    function, reason = FROZEN[name]
    check_law(odd(function), batch())
    channels = find_channels(trace(odd(function).double()), (3, 6, 6))
    assert free(channels, "stem") < 8
    assert any(reason in text for text in channels.frozen.values())


def test_parts_of_a_number_become_parts_of_their_own():
    network = trace(odd(ODD["parts of a number"]).double().eval())
    channels = find_channels(network, (3, 6, 6))
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.writes["stem"][[0, 1, 3, 4]]] = False  # of five and three, one and three are left
    with torch.no_grad():
        torch.testing.assert_close(cut(network, channels, alive)(batch()), zeroed(network, channels, alive)(batch()))


def test_a_shuffle_leaves_more_than_one_atom():
    channels = find_channels(trace(odd(ODD["shuffled"]).double()), (3, 6, 6))
    assert torch.equal(channels.writes["stem"], channels.writes["stem"][:4].repeat(2))
    assert torch.equal(channels.reads["last"], channels.writes["stem"][:4].repeat_interleave(2))
    by_hand = find_channels(trace(odd(ODD["unflattened"]).double()), (3, 6, 6))
    assert torch.equal(by_hand.reads["last"], channels.reads["last"])


def test_a_channel_that_is_broadcast_over_others_stays():
    channels = find_channels(trace(odd(ODD["gate of one channel"]).double()), (3, 6, 6))
    assert channels.frozen[int(channels.writes["gate"])] == "mul: it is broadcast over channels"


def test_indices_of_a_position_table_freeze_no_other_channels():
    channels = find_channels(trace(torchvision_net("swin_v2_t").eval()), (3, 64, 64))
    assert free(channels, "features.1.0.mlp.0") == 384
    assert not [tensor for tensor, _ in channels.slots if tensor.endswith("relative_position_index")]


def test_type_gradient_scope_and_values_come_along(tmp_path):
    network = trace(make(Plain).float())
    network.conv1.weight.requires_grad_(False)
    channels = find_channels(network, (2, 8, 8))
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    for layer in ("conv1", "conv2", "fc1"):
        alive[channels.writes[layer][1]] = False
    smaller = select_inputs(cut(network, channels, alive), {"fc2": torch.tensor([1])})
    assert not smaller.conv1.weight.requires_grad
    assert smaller.conv2.weight.requires_grad
    assert {tensor.dtype for tensor in smaller.parameters()} == {torch.float32}
    assert all("scope" in node.meta for node in smaller.graph.nodes if node.op.startswith("call"))
    save(Checkpoint(smaller, {"kind": "plain"}, (2, 8, 8), "classification", {}, []), tmp_path / "model.pt")
    loaded, x = load(tmp_path / "model.pt").network, torch.randn(3, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), smaller.eval()(x))
