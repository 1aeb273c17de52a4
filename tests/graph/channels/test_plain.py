"""Computed weights become plain ones, with the same outputs, and their channels may go."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresskit.graph.channels.plain import plain_layers, plain_weights
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.format.table import from_table, to_table
from compresskit.graph.trace import trace
from tests.graph.channels.families import Multihead
from tests.graph.channels.law import check_law


class Standardised(nn.Conv2d):
    """As normaliser-free nets have it."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.7))

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, weight=self.gain.view(-1), training=True,
            momentum=0.0, eps=1e-6,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Standardised(3, 6, 3, padding=1, bias=False), Standardised(6, 8, 3, stride=2)
        self.table, self.qkv = nn.Parameter(torch.randn(1, 8, 2, 2)), nn.Linear(8, 6, bias=False)
        self.first, self.last = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.two(self.one(x).relu()) + F.interpolate(self.table, size=(3, 3), mode="bilinear")
        return self.head(F.linear(x.mean((2, 3)), self.qkv.weight, torch.cat((self.first, self.last))).relu())


def test_outputs_stay_and_all_channels_may_go():
    torch.manual_seed(0)
    network = trace(Net().eval(), (3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    assert len(find_channels(network, (3, 8, 8)).frozen) > 10
    plain, names = plain_weights(network)
    assert names == ["one", "two", "qkv", "interpolate_table"]
    assert torch.equal(plain(x), network(x))
    assert plain.get_submodule("two").stride == (2, 2)
    assert plain.get_submodule("one").bias is None
    assert [node.target for node in plain.graph.nodes if node.op == "get_attr"] == ["interpolate_table"]
    channels = find_channels(plain, (3, 8, 8))
    assert set(channels.frozen.values()) == {"it is the network's input", "it is the network's output"}
    from_table(to_table(plain))
    assert not any(name.startswith(("one.gain", "first", "table")) for name, _ in plain.named_parameters())


@pytest.mark.parametrize("seed", range(3))
def test_the_law(seed):
    torch.manual_seed(seed)
    plain, _ = plain_weights(trace(Net().eval(), (3, 8, 8)))
    assert check_law(plain, torch.randn(2, 3, 8, 8, dtype=torch.float64), seed) > 0


def test_what_computes_nothing_is_returned_as_it_is():
    network = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert plain_weights(network) == (network, [])


def test_attention_as_one_module_is_written_out():
    torch.manual_seed(0)
    network = trace(Multihead().eval(), (3, 6, 6))
    plain, names = plain_layers(network, (3, 6, 6))
    assert names
    assert not any(isinstance(module, nn.MultiheadAttention) for module in plain.modules())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-5, atol=1e-6)


class Several(nn.Module):
    """Two computed weights in one module, and a parameter that activations meet."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = F.linear(x, self.weight / self.weight.norm()) * self.scale
        return F.linear(x, self.other / self.weight.norm())


def test_a_module_with_more_than_a_layer_keeps_the_rest():
    torch.manual_seed(0)
    network = trace(nn.Sequential(Several(), nn.ReLU(), nn.Linear(8, 3)), (8,))
    plain, names = plain_weights(network)
    assert len(set(names)) == 2
    x = torch.randn(4, 8)
    assert torch.equal(plain(x), network(x))
    assert "0.scale" in dict(plain.named_parameters())
    from_table(to_table(plain))


class Called(nn.Module):
    """Weights as arguments: of a layer, of products, one that two calls read, and one that several heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.product = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 7))
        self.shift, self.sum = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(7, 6))
        self.twice, self.stack = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(2, 6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(F.linear(x, self.free))
        x = F.relu(x @ self.product)
        x = F.relu(torch.addmm(self.shift, x, self.sum))
        x = F.linear(F.relu(F.linear(x, self.twice)), self.twice)
        return self.head((x @ self.stack).sum(0))


def test_weights_that_are_arguments_are_those_of_layers():
    torch.manual_seed(0)
    network = trace(Called().double(), (8,))
    plain, names = plain_weights(network)
    assert names == ["linear", "matmul", "addmm"]
    assert [tuple(plain.get_submodule(name).weight.shape) for name in names] == [(6, 8), (7, 6), (6, 7)]
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(x), network(x))
    assert {"twice", "stack"} <= set(dict(plain.named_parameters()))
    assert not {"free", "product", "sum", "shift"} & set(dict(plain.named_parameters()))
    from_table(to_table(plain))


class Arguments(nn.Module):
    """Weights as arguments of calls: frozen, of one dimension, by keyword, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.frozen = nn.Parameter(torch.randn(7, 8), requires_grad=False)
        self.named = nn.Parameter(torch.randn(5, 7))
        self.register_buffer("basis", torch.randn(5, 4))
        self.last = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = nn.functional.linear(self.first(x).relu(), self.frozen)
        x = nn.functional.linear(input=x, weight=self.named) @ self.basis
        return torch.stack([nn.functional.linear(x, self.last), x.sum(-1)], -1)


def test_weights_as_arguments_of_every_form():
    torch.manual_seed(0)
    network, x = trace(Arguments(), (6,)), torch.randn(3, 6)
    plain, names = plain_layers(network, (6,))
    torch.testing.assert_close(plain(x), network(x))
    frozen, named = (plain.get_submodule(name) for name in names)
    assert not frozen.weight.requires_grad
    assert named.weight.requires_grad
