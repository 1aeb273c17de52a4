"""Blocks: what one value enters and one leaves, and where channels of their outputs lie."""

import pytest
import torch
from torch import nn

from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.segments import Block, find_blocks, node_places
from compresskit.graph.shapes import Interpreter, node_shapes
from compresskit.graph.trace import trace

SHAPE = (3, 8, 8)


def conv(inputs: int, outputs: int, **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two residual sums, the second behind a shortcut with a layer; pooled, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.short = conv(3, 6), conv(6, 6), conv(6, 8), nn.Conv2d(6, 8, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.one(x))
        x = self.two(x) + self.short(x)
        return self.head(self.pool(x).flatten(1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.head = nn.Conv2d(3, 4, 1), conv(4, 3), conv(7, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.one(x)], 1)
        return self.head(x).mean((2, 3))


class Heads(nn.Module):
    """Two parts that one value leaves for."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.left, self.right = conv(3, 4), conv(4, 4), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.two(self.one(x))
        return torch.cat([self.left(x).flatten(1), self.right(x).flatten(1)], 1)


class Gated(nn.Module):
    """Values times one gate for all channels, which comes first among what the product reads."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.head = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(torch.sigmoid(self.gate(x)) * self.one(x)).mean((2, 3))


def blocks(net: nn.Module, least: int, known=lambda node: True) -> list[Block]:
    return find_blocks(trace(net.eval(), SHAPE), least, known)


def layers(net: nn.Module, least: int, known=lambda node: True) -> list[tuple[str, ...]]:
    return [block.layers for block in blocks(net, least, known)]


def test_residual_sums_end_blocks_and_branches_do_not():
    assert layers(Residual(), 1) == [("stem.0",), ("one.0",), ("two.0", "short"), ("head",)]
    assert layers(Residual(), 2) == [("stem.0", "one.0"), ("two.0", "short"), ("head",)]
    assert layers(Residual(), 9) == [("stem.0", "one.0", "two.0", "short", "head")]


def test_blocks_are_joined_from_the_input_to_the_output():
    net = trace(Residual().eval(), SHAPE)
    found = find_blocks(net, 1, lambda node: True)
    nodes = list(net.graph.nodes)
    assert found[0].source == nodes[0].name
    assert [block.source for block in found[1:]] == [block.target for block in found[:-1]]
    assert found[-1].target == nodes[-1].args[0].name


def test_norms_activations_and_pools_belong_to_the_block_before():
    net = trace(Residual().eval(), SHAPE)
    targets = {node.name: node for node in net.graph.nodes}
    ends = [targets[block.target] for block in find_blocks(net, 1, lambda node: True)]
    assert [str(node.target) for node in ends[:1]] == ["stem.2"]
    assert "flatten" in ends[2].name or "pool" in ends[2].name


def test_a_block_ends_only_where_it_may():
    assert layers(Residual(), 1, lambda node: not node.name.startswith(("relu", "add"))) == [
        *[("stem.0",), ("one.0", "two.0", "short"), ("head",)]
    ]


def test_dense_blocks_end_where_all_is_joined():
    assert layers(Dense(), 1) == [("stem",), ("one.0",), ("head.0",)]


def test_what_several_values_leave_is_in_no_block():
    assert layers(Heads(), 1, lambda node: not node.name.startswith("cat")) == [("one.0",), ("two.0",)]


@pytest.mark.parametrize("made", [Residual, Dense])
def test_channels_of_every_end_are_where_the_cut_network_has_them(made):
    """With layers that read zeros for what is cut, values of the cut network are the others' at these places."""
    torch.manual_seed(0)
    net = trace(made().eval(), SHAPE)
    channels = find_channels(net, SHAPE)
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    free = [atom for atom in range(channels.n_atoms) if atom not in channels.frozen]
    alive[free[::3]] = False
    with torch.no_grad():
        for name, dim in channels.blinding:
            net.get_parameter(name).index_fill_(dim, (~alive[channels.slots[name, dim]]).nonzero()[:, 0], 0)
    small, places = cut(net, channels, alive), channels.places(alive)
    inputs, tested, known = torch.randn(2, *SHAPE), [], node_places(net, places)
    whole_values, small_values = values(net, inputs), values(small, inputs)
    for node in small.graph.nodes:
        place = known.get(node.name)
        if place is not None:
            expected = whole_values[node.name].index_select(place.dim, place.kept)
            torch.testing.assert_close(small_values[node.name], expected)
            tested.append(node)
    cut_ones = [node for node in tested if small_values[node.name].shape != whole_values[node.name].shape]
    assert len(cut_ones) >= 5
    assert any(node.name.startswith(("cat", "add")) for node in cut_ones)


def test_a_gate_of_one_channel_does_not_say_where_channels_lie():
    net = trace(Gated().eval(), SHAPE)
    channels = find_channels(net, SHAPE)
    places = channels.places(torch.ones(channels.n_atoms, dtype=torch.bool))
    shapes = node_shapes(net, SHAPE)
    known = node_places(net, places)
    for name, place in known.items():
        assert len(place.kept) == place.of == shapes[name][place.dim]
    (product,) = (node for node in net.graph.nodes if node.name.startswith("mul"))
    assert product.name not in known


def values(net, inputs):
    found = {}

    class Recorder(Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                found[n.name] = result.clone()
            return result

    with torch.no_grad():
        Recorder(net).run(inputs)
    return found


def test_values_that_meet_again_and_again_cost_one_look_each():
    """60 times twice as many ways from the input to the output."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            for _ in range(60):
                x = torch.tanh(x) * torch.relu(x)
            return self.head(x).mean((2, 3))

    net = trace(Deep().eval(), SHAPE)
    assert len(node_places(net, {"conv": None, "head": None})) == 2 + 3 * 60


def test_padding_with_channels_and_one_value_twice_do_not_keep_places():
    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.twice, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            padded = nn.functional.pad(x, (0, 0, 0, 0, 2, 2))
            return (self.head(padded) + self.twice(torch.cat([x, x], 1))).mean((2, 3))

    net = trace(Padding().eval(), SHAPE)
    known = node_places(net, {"conv": torch.tensor([1, 3]), "twice": None, "head": None})
    shapes = node_shapes(net, SHAPE)
    assert all(place.of == shapes[name][place.dim] for name, place in known.items())
    (joined,) = (place for name, place in known.items() if name.startswith("cat"))
    assert joined.kept.tolist() == [1, 3, 5, 7]


def test_attention_as_one_module_is_where_nothing_is_known():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            return self.attention(x, x, x)[0].mean(1)

    net = trace(Attending().eval(), SHAPE)
    assert list(node_places(net, {"embed": None, "attention": None})) == ["embed"]
