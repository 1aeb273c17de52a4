"""Which outputs of a network are found, under which names, and that they are what its modules give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresskit.graph.capture import capture
from compresskit.graph.trace import trace
from compresskit.passes.spectra.outputs import outputs_of
from compresskit.passes.spectra.similarity import similarity


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv2(self.act(self.norm(self.conv1(x)))) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stage = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.gelu(self.stem(x))
        return self.head(self.stage(x).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return trace(Net().double().eval())


EXPECTED = {
    "layers": ["stem", "stage.0.conv1", "stage.0.conv2", "stage.1.conv1", "stage.1.conv2", "head"],
    "norms": ["stage.0.norm", "stage.1.norm"],
    "activations": ["gelu", "stage.0.act", "stage.0.act (2)", "stage.1.act", "stage.1.act (2)"],
    "sums": ["add", "add_1"],
    "blocks": ["stage.0", "stage.1"],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_outputs_are_named_after_what_gives_them(net, kind):
    assert list(outputs_of(net, [kind])) == EXPECTED[kind]


def test_outputs_of_all_kinds_are_in_the_order_of_the_network(net):
    order = [node.name for node in net.graph.nodes]
    found = outputs_of(net, list(EXPECTED))
    assert sorted(found) == sorted(name for names in EXPECTED.values() for name in names)
    places = [order.index(node) for node in found.values()]
    assert places == sorted(places)


def test_a_block_gives_what_the_module_gives(net):
    plain, x = Net().double().eval(), torch.randn(6, 3, 5, 5, dtype=torch.float64)
    plain.load_state_dict(net.state_dict())
    hooked = {}
    for name in ("stage.0", "stage.1"):
        plain.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: hooked.update({name: out}))
    plain(x)
    found = outputs_of(net, ["blocks"])
    for name, value in zip(found, capture(net, list(found.values()))(x), strict=True):
        torch.testing.assert_close(value, hooked[name])


def test_both_networks_and_the_pair_are_found_at_once(net):
    torch.manual_seed(1)
    other = trace(Net().double().eval())
    batches = [torch.randn(12, 3, 5, 5, dtype=torch.float64) for _ in range(3)]
    names = outputs_of(net, ["layers"]), outputs_of(other, ["blocks"])
    together = similarity([net, other], names, batches)
    for place, (network, outputs) in enumerate(zip((net, other), names, strict=True)):
        alone = similarity([network], [outputs], batches)
        part = slice(0, len(names[0])) if place == 0 else slice(len(names[0]), None)
        torch.testing.assert_close(together[part, part], alone)
    torch.testing.assert_close(together, together.T)
    assert together[: len(names[0]), len(names[0]) :].max() < 0.999


def test_a_function_and_a_module_of_one_name_are_two_outputs():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(self.fc(torch.relu(self.fc(x))))

    assert list(outputs_of(trace(Twice()), ["activations"]).values()) == ["relu", "relu_1"]
