"""The deep networks of "Sparsity-Aware Orthogonal Initialization", and MaxMin."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.trace import trace
from compresskit.models.parts.activations import MaxMin, check_width
from compresskit.models.parts.images import padded
from compresskit.models.plain.convnet import ConvNet
from compresskit.models.plain.fnn import FNN
from compresskit.models.plain.lipconvnet import LipConvNet
from compresskit.models.plain.mlp import MLP
from compresskit.models.plain.vanilla_cnn import VanillaCNN
from compresskit.storage.checkpoint import Checkpoint, load, save
from tests.graph.channels.law import check_law

NETS = {
    "fnn": (FNN(depth=3), (1, 28, 28)),
    "vanilla-cnn": (VanillaCNN(depth=4, width=6), (3, 9, 12)),
    "vanilla-cnn-strided": (VanillaCNN(depth=3, width=4, activation="maxmin", pool="strided"), (3, 16, 13)),
    "lipconvnet": (LipConvNet(depth=10, width=4), (1, 28, 28)),
}


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the weights, by layer."""
    return {name.removesuffix(".weight"): tuple(p.shape) for name, p in net.named_parameters() if p.ndim > 1}


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def maps(net: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of the results of all convolutions, by layer."""
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, result, name=name: found.update({name: tuple(result.shape[1:])}))
    net(torch.zeros(1, *shape))
    return found


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return kernel**2 * inputs * outputs + outputs


def test_fnn_is_that_of_table_1():
    net = FNN(depth=4).build((1, 28, 28), 10)
    square = {f"fc{number}": (256, 256) for number in (3, 4, 5)}
    assert shapes(net) == {"fc1": (512, 1024), "fc2": (256, 512), **square, "head": (10, 256)}
    assert size(net) == (1024 * 512 + 512) + (512 * 256 + 256) + 3 * (256 * 256 + 256) + (256 * 10 + 10)
    acts = [f"{layer}{end}" for layer in ("fc1", "fc2", *square) for end in ("", "_act")]
    assert [name for name, _ in net.named_children()] == ["pad", "flatten", *acts, "head"]
    assert all(isinstance(layer, nn.Tanh) for name, layer in net.named_children() if name.endswith("_act"))
    assert shapes(FNN(depth=1).build((1, 28, 28), 2)) == {"fc1": (512, 1024), "fc2": (256, 512), "head": (2, 256)}


@pytest.mark.parametrize(("shape", "features"), [((3, 32, 32), 3 * 1024), ((1, 40, 33), 40 * 33)])
def test_fnn_leaves_larger_images_as_they_are(shape, features):
    net = FNN(depth=1, activation="relu").build(shape, 2)
    assert [name for name, _ in net.named_children()][:2] == ["flatten", "fc1"]
    assert net.fc1.in_features == features
    assert isinstance(net.fc2_act, nn.ReLU)
    assert net(torch.zeros(5, *shape)).shape == (5, 2)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 31, 40), (3, 5, 32)])
def test_images_stay_in_the_centre_of_the_padding(shape):
    layers, larger = padded(shape, 32)
    assert larger == (shape[0], 32, max(32, shape[2]))
    image = torch.rand(shape)
    top, left = ((wide - side) // 2 for wide, side in zip(larger[1:], shape[1:], strict=True))
    expected = torch.zeros(larger)
    expected[:, top : top + shape[1], left : left + shape[2]] = image
    assert torch.equal(layers["pad"](image), expected)


def test_vanilla_cnn_with_average_pooling():
    net = VanillaCNN(depth=5, width=7).build((3, 32, 32), 10)
    square = {f"conv{number}": (7, 7, 3, 3) for number in (2, 3, 4, 5)}
    assert shapes(net) == {"conv1": (7, 3, 3, 3), **square, "head": (10, 7)}
    assert size(net) == conv(3, 7) + 4 * conv(7, 7) + 7 * 10 + 10
    sides = {"conv1": 32, "conv2": 16, "conv3": 8, "conv4": 8, "conv5": 8}
    assert maps(net, (3, 32, 32)) == {name: (7, side, side) for name, side in sides.items()}
    layers = [f"{layer}{number}" for number in range(1, 6) for layer in ("conv", "act")]
    assert [name for name, _ in net.named_children()] == [*layers, "pool", "flatten", "head"]
    assert all(isinstance(layer, nn.Tanh) for name, layer in net.named_children() if name.startswith("act"))
    features = net[: len(layers)](x := torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(net(x), features.mean((2, 3)) @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize(("shape", "last"), [((3, 32, 32), (2, 2)), ((1, 28, 28), (2, 2)), ((3, 33, 70), (3, 5))])
def test_vanilla_cnn_with_strided_convolutions_in_place_of_the_pooling(shape, last):
    net = VanillaCNN(depth=3, width=4, activation="relu", pool="strided").build(shape, 10)
    assert [name for name, _ in net.named_children()][-6:] == ["conv4", "act4", "conv5", "act5", "flatten", "head"]
    assert shapes(net)["conv5"] == (4, 4, 3, 3)
    assert size(net) == conv(shape[0], 4) + 4 * conv(4, 4) + 4 * last[0] * last[1] * 10 + 10
    found = maps(net, shape)
    assert found["conv1"] == (4, *shape[1:])
    assert found["conv5"] == (4, *last)
    assert [net.get_submodule(name).stride[0] for name in found] == [1, 2, 2, 2, 2]
    assert isinstance(net.act5, nn.ReLU)


def test_lipconvnet_has_five_blocks():
    net = LipConvNet(depth=15).build((3, 32, 32), 10)
    expected, layers, inputs = {}, {}, 3
    for block, (width, side) in enumerate([(32, 32), (64, 16), (128, 8), (256, 4), (512, 2)], 1):
        for number, (outputs, left) in enumerate([(width, side), (width, side), (2 * width, side // 2)], 1):
            expected[f"block{block}.conv{number}"] = (outputs, left, left)
            layers[f"block{block}.conv{number}"] = (outputs, inputs, 3, 3)
            inputs = outputs
    assert maps(net, (3, 32, 32)) == expected
    assert shapes(net) == {**layers, "head": (10, 1024)}
    widths = [32, 32, 64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512, 1024]
    assert size(net) == sum(map(conv, [3, *widths], widths)) + 1024 * 10 + 10
    kinds = [type(layer).__name__ for name, layer in net.named_modules() if name.startswith("block3.")]
    assert kinds == ["Conv2d", "MaxMin"] * 3


@pytest.mark.parametrize(("shape", "sides"), [((1, 28, 28), 1), ((3, 64, 96), 6)])
def test_the_smallest_lipconvnet_only_halves(shape, sides):
    net = LipConvNet(depth=5, width=2, kernel=5).build(shape, 10)
    assert size(net) == sum(map(conv, [shape[0], 4, 8, 16, 32], [4, 8, 16, 32, 64], [5] * 5)) + 64 * sides * 10 + 10
    height, width = (max(side, 32) for side in shape[1:])
    assert maps(net, shape) == {f"block{b}.conv1": (2 * 2**b, height // 2**b, width // 2**b) for b in range(1, 6)}
    assert ("pad" in dict(net.named_children())) == (shape == (1, 28, 28))


@pytest.mark.parametrize("name", NETS)
def test_a_checkpoint_gives_the_network_back(name, tmp_path):
    model, shape = NETS[name]
    torch.manual_seed(0)
    net = model.build(shape, 10)
    network, x = trace(net), torch.randn(3, *shape)
    save(Checkpoint(network, {"kind": model.kind}, shape, "classification", {}, []), tmp_path / "model.pt")
    back = load(tmp_path / "model.pt").network
    assert not torch.equal(net(x)[0], net(x)[1])
    for training in (True, False):
        for copy in (network, back):
            assert torch.equal(copy.train(training)(x), net.train(training)(x))
    assert shapes(back) == shapes(net)


@pytest.mark.parametrize("name", NETS)
def test_channels_can_be_cut(name):
    """MaxMin's pairs go together, so that even widths stay even."""
    model, shape = NETS[name]
    torch.manual_seed(0)
    assert check_law(model.build(shape, 10), torch.randn(2, *shape, dtype=torch.float64)) > 0


@pytest.mark.parametrize("shape", [(5, 6), (2, 8, 7), (3, 4, 5, 2)])
def test_maxmin_against_numpy(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    first, second = np.split(x.numpy(), 2, axis=1)
    expected = np.concatenate([np.maximum(first, second), np.minimum(first, second)], axis=1)
    assert np.array_equal(MaxMin()(x).numpy(), expected)


def test_maxmin_keeps_the_norm_of_values_and_gradients():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(MaxMin()(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    jacobian = torch.autograd.functional.jacobian(MaxMin(), x[:1]).view(18, 18)
    assert torch.equal(jacobian @ jacobian.T, torch.eye(18, dtype=torch.float64))
    assert not torch.equal(jacobian, torch.eye(18, dtype=torch.float64))


MAXMIN = "activation: maxmin takes channels in pairs, {} is odd; use even widths"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VanillaCNN(depth=3, width=7, activation="maxmin"), MAXMIN.format(7)),
        (lambda: MLP(widths=(4, 3, 5), activation="maxmin"), MAXMIN.format(3)),
        (lambda: ConvNet(channels=(4, 9), activation="maxmin"), MAXMIN.format(9)),
        (lambda: ConvNet(channels=(4,), dense=(11,), activation="maxmin"), MAXMIN.format(11)),
        (lambda: LipConvNet(depth=5, width=3), MAXMIN.format(3)),
        (lambda: LipConvNet(depth=12), "depth: 12 is not a multiple of 5; take 5, 10, 15, 20, ..."),
        (
            lambda: LipConvNet(depth=5, kernel=4),
            "kernel: 4 is even and would change the size of maps; take 1, 3, 5, ...",
        ),
    ],
)
def test_options_that_there_are_not(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_odd_widths_are_fine_for_other_activations():
    check_width("relu", (3,))
    check_width("maxmin", (2, 4))
    net = MLP(widths=(4, 6), activation="maxmin").build((5,), 2)
    assert net(torch.zeros(3, 5)).shape == (3, 2)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (FNN(depth=1), (784,), "model: fnn takes images (C, H, W), the data's have shape (784,)"),
        (
            VanillaCNN(depth=3, width=2),
            (9, 128),
            "model: vanilla-cnn takes images (C, H, W), the data's have shape (9, 128)",
        ),
        (LipConvNet(depth=5), (784,), "model: lipconvnet takes images (C, H, W), the data's have shape (784,)"),
        (
            LipConvNet(depth=5),
            (3, 64, 48),
            "model: lipconvnet takes images whose sides are multiples of 32, or less, given (3, 64, 48)",
        ),
    ],
)
def test_data_that_do_not_fit(model, shape, message):
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        model.build(shape, 10)
