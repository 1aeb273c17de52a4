"""Counts against hand-computed ones, and against those that torchvision states."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.models.plain.lenet import LeNet5
from tests.graph.nets import INPUTS, Plain, Shared, make


def macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    return count(trace(module), input_shape).macs


def given(forward) -> nn.Module:
    return type("Given", (nn.Module,), {"forward": forward})()


def test_lenet5_layer_by_layer():
    counts = count(trace(LeNet5().build((1, 28, 28), 10)), (1, 28, 28))
    rows = [(r.name, r.kind, r.weight_shape, r.output_shape, r.parameters, r.macs) for r in counts.layers]
    assert rows == [
        ("conv1", "Conv2d", (20, 1, 5, 5), (20, 24, 24), 520, 20 * 25 * 24 * 24),
        ("conv2", "Conv2d", (50, 20, 5, 5), (50, 8, 8), 25050, 50 * 20 * 25 * 8 * 8),
        ("fc1", "Linear", (500, 800), (500,), 400500, 800 * 500),
        ("head", "Linear", (10, 500), (10,), 5010, 500 * 10),
    ]
    assert (counts.parameters, counts.macs) == (431080, 2293000)


@pytest.mark.parametrize(
    ("module", "input_shape", "expected"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 9), 6 * 2 * 3 * 4),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 2 * 8 * 27),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 4 * 3 * 9 * 25),  # each input value meets each tap
        (nn.Linear(3, 5), (7, 3), 7 * 3 * 5),
        # projections in and out, then scores and mixing
        (nn.MultiheadAttention(8, 2, batch_first=True), (5, 8), 5 * 8 * 24 + 5 * 8 * 8 + 2 * 5 * 5 * 8),
    ],
)
def test_modules(module, input_shape, expected):
    net = nn.Sequential(module)
    if isinstance(module, nn.MultiheadAttention):
        net = nn.Module()
        net = type("Attention", (nn.Module,), {"forward": lambda self, x: self.layer(x, x, x)[0]})()
        net.layer = module
    assert macs(net, input_shape) == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda self, x: x @ x.transpose(1, 2), 5 * 8 * 5),
        (lambda self, x: torch.matmul(x, x.transpose(1, 2)), 5 * 8 * 5),
        (lambda self, x: torch.bmm(x, x.transpose(1, 2)), 5 * 8 * 5),
        (lambda self, x: torch.einsum("bij,bkj->bik", x, x), 5 * 8 * 5),
        (lambda self, x: F.scaled_dot_product_attention(x, x, x), 2 * 5 * 8 * 5),
        (lambda self, x: F.relu(x) + x.softmax(1), 0),
    ],
)
def test_functions(forward, expected):
    counts = count(trace(given(forward)), (5, 8))
    assert counts.macs == expected
    assert sum(layer.macs for layer in counts.layers) == expected
    assert all(layer.weight_shape is None for layer in counts.layers)


# MAC counts as torchvision states them in GFLOPS of its weights' metadata.
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2_x1_0", "vit_b_16", "swin_t", "swin_v2_t", "densenet121"],
)
def test_agrees_with_what_torchvision_states(name):
    meta, size = models.get_model_weights(name).DEFAULT.meta, 256 if "v2_t" in name else 224
    with torch.device("meta"):
        network = trace(models.get_model(name, weights=None))
    counts = count(network, (3, size, size))
    assert counts.macs / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)  # stated to three digits
    assert counts.parameters == meta["num_params"]
    assert sum(layer.parameters for layer in counts.layers) == counts.parameters


def test_a_layer_called_twice_is_one_row_with_the_work_of_both():
    counts = count(trace(make(Shared)), INPUTS[Shared])
    assert [(r.name, r.parameters, r.macs) for r in counts.layers] == [("fc", 20, 32), ("head", 10, 8)]


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    counts = count(trace(net), (4,))
    assert counts.parameters == sum(layer.parameters for layer in counts.layers) == 16 + 4 + 4
    assert counts.macs == 32


def test_the_network_is_not_run_and_keeps_its_mode_and_values():
    network = trace(make(Plain)).train()
    network.norm1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count(network, INPUTS[Plain])
    assert network.training
    assert network.conv1.training
    assert not network.norm1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert next(network.parameters()).device.type == "cpu"
