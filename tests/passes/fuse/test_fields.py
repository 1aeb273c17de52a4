"""Receptive fields against the gradient of the output: which source positions does one output position really see?"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compresskit.graph.capture import capture
from compresskit.graph.chains import find_chain
from compresskit.graph.shapes import node_shapes
from compresskit.graph.trace import trace
from compresskit.passes.fuse.fields import Field, receptive_fields


def chain_of(*layers: nn.Module) -> nn.Sequential:
    """conv, the layers, conv: 1-D, one channel, positive weights, so that gradients cannot cancel."""
    net = nn.Sequential(*layers).double()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    return net


def fields_of(network, chain, input_shape):
    nodes = {node.name: node for node in network.graph.nodes}
    inside = [nodes[name] for name in chain.nodes]
    return receptive_fields(network, nodes[chain.source], inside, node_shapes(network, input_shape))


CHAINS = {
    "two convolutions": [nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1)],
    "pooling between": [nn.Conv1d(1, 1, 3, padding=1), nn.AvgPool1d(2), nn.Conv1d(1, 1, 3, padding=1)],
    "even kernels": [nn.Conv1d(1, 1, 4, padding=2), nn.AvgPool1d(3, 2, 1), nn.Conv1d(1, 1, 2)],
    "strides": [nn.Conv1d(1, 1, 5, stride=2), nn.Softplus(), nn.Conv1d(1, 1, 3, stride=3, padding=1)],
    "dilation": [nn.Conv1d(1, 1, 3, dilation=2, padding=2), nn.Conv1d(1, 1, 3, dilation=3)],
    "same": [nn.Conv1d(1, 1, 4, padding="same"), nn.Conv1d(1, 1, 3, padding="same", dilation=2)],
    "three": [nn.Conv1d(1, 1, 3), nn.AvgPool1d(2), nn.Conv1d(1, 1, 3), nn.AvgPool1d(2), nn.Conv1d(1, 1, 3)],
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch says that it copies the input
@pytest.mark.parametrize("name", CHAINS)
def test_field_is_what_the_gradient_reaches(name):
    net = chain_of(*CHAINS[name])
    network = trace(net)
    chain = find_chain(network, "0", str(len(net) - 1))
    fields = fields_of(network, chain, (1, 48))
    assert fields is not None
    (field,) = fields
    x = torch.ones(1, 1, 48, dtype=torch.float64, requires_grad=True)
    output = net(x)
    margin, checked = 8, 0  # nearer to the border, padding inside the chain hides a part of the field
    for position in range(output.shape[2]):
        low, high = field.stride * position + field.lo, field.stride * position + field.hi
        if margin <= low and high < 48 - margin:
            (gradient,) = torch.autograd.grad(output[0, 0, position], x, retain_graph=True)
            reached = gradient[0, 0].nonzero().flatten().tolist()
            assert (reached[0], reached[-1]) == (low, high)
            checked += 1
    assert checked > 2


def test_the_document_s_formula_for_a_pair_with_pooling():
    """Size k1 + (k2 - 1) s1 r1 + (r1 - 1) s1 and offset p1 + p2 s1 r1 for k = 3, p = 1, r1 = 2."""
    field = Field(1, 0, 0).behind(3, 1, 1, 1).behind(2, 2, 0, 1).behind(3, 1, 1, 1)
    assert field == Field(2, -3, 4)
    assert field.window(None) == (8, 3)


@pytest.mark.parametrize(("kernel", "expected"), [(8, (8, 3)), (4, (4, 1)), (3, (3, 1)), (10, (10, 4)), (1, (1, 0))])
def test_a_chosen_kernel_sits_in_the_middle(kernel, expected):
    assert Field(2, -3, 4).window(kernel) == expected


def test_positions_that_never_meet_the_map_are_left_out():
    assert Field(2, -9, 9).seeing(size_in=7, size_out=3) == Field(2, -4, 6)


class Averages(nn.Module):
    """An average pooling whose fifth argument is no dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3)

    def forward(self, x):
        return self.conv2(functional.avg_pool1d(functional.max_pool1d(self.conv1(x), 2, 2, 0, 1), 2, 2, 0, False))


def test_poolings_that_are_called_count_as_modules_do():
    network = trace(Averages())
    chain = find_chain(network, "conv1", "conv2")
    fields = fields_of(network, chain, (1, 40))
    assert fields == (Field(1, 0, 0).behind(3, 1, 0, 1).behind(2, 2, 0, 1).behind(2, 2, 0, 1).behind(3, 1, 0, 1),)


def test_a_global_pooling_has_no_field():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Conv1d(2, 2, 1)).double()
    network = trace(net)
    assert fields_of(network, find_chain(network, "0", "2"), (1, 9)) is None


def test_capture_gives_values_before_an_activation_in_place_changes_them():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    network = trace(net)
    x = torch.randn(5, 3, dtype=torch.float64)
    before, after = capture(network, ["_0", "_2"])(x)
    torch.testing.assert_close(before, net[0](x), rtol=0, atol=0)
    torch.testing.assert_close(after, net(x), rtol=0, atol=0)


def test_capture_stops_behind_the_last_node_and_leaves_the_network_alone():
    network = trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    nodes = [node.name for node in network.graph.nodes]
    captured = capture(network, ["_0"])
    assert "_2" not in {node.name for node in captured.graph.nodes}
    assert [node.name for node in network.graph.nodes] == nodes
