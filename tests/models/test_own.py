"""The networks of our own: their layers, and what is said of data that they cannot take."""

import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.trace import trace
from compresskit.models.images.densenet import DenseNet
from compresskit.models.images.mobilenet import MobileNet, MobileNetV2
from compresskit.models.images.resnet import ResNet, WideResNet
from compresskit.models.images.vgg import VGG
from compresskit.models.plain.convnet import ConvNet
from compresskit.models.plain.lenet import LeNet5, LeNet300100
from compresskit.models.plain.mlp import MLP
from compresskit.models.plain.smallnet import SmallNet
from compresskit.models.registry import MODELS


def names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_children()]


def output(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(network.eval()(torch.zeros(2, *shape)).shape)


def test_every_kind_is_registered_under_its_own_name():
    assert {cls.kind: cls for cls in MODELS.values()} == MODELS
    assert all(cls.__doc__ for cls in MODELS.values())


def test_mlp():
    net = MLP(widths=(16, 128), batch_norm=True, activation="tanh", dropout=0.1).build((3, 4), 2)
    assert names(net)[:5] == ["flatten", "fc1", "fc1_norm", "fc1_act", "fc1_dropout"]
    assert names(net)[-1] == "head"
    assert (net.fc1.in_features, net.fc2.in_features, net.head.in_features) == (12, 16, 128)
    assert isinstance(net.fc2_act, nn.Tanh)
    assert net.fc2_dropout.p == 0.1
    assert output(net, (3, 4)) == (2, 2)


def test_mlp_without_hidden_layers_is_linear():
    assert names(MLP(widths=()).build((5,), 2)) == ["flatten", "head"]


@pytest.mark.parametrize(("model", "parameters"), [(LeNet300100(), 266610), (LeNet5(), 431080)])
def test_lenets_have_the_documented_size(model, parameters):
    net = model.build((1, 28, 28), 10)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert output(net, (1, 28, 28)) == (2, 10)


def test_lenet5_is_caffes():
    assert names(LeNet5().build((1, 28, 28), 10)) == [
        *("conv1", "pool1", "conv2", "pool2", "flatten", "fc1", "relu", "head")
    ]
    assert output(LeNet5().build((3, 17, 33), 4), (3, 17, 33)) == (2, 4)


def test_convnet_of_fuseinit_table_2():
    net = ConvNet(channels=(2, 4, 8, 16)).build((1, 28, 28), 10)
    assert names(net) == [*(f"{layer}{i}" for i in range(1, 5) for layer in ("conv", "act", "pool")), "flatten", "head"]
    assert net.head.in_features == 16
    assert net.conv2.kernel_size == (3, 3)
    assert net.conv2.padding == (1, 1)
    assert isinstance(net.pool4, nn.MaxPool2d)
    assert output(net, (1, 28, 28)) == (2, 10)


def test_pooling_stops_where_the_map_is_one_wide():
    assert "pool3" not in names(ConvNet(channels=(2, 2, 2)).build((1, 5, 5), 10))


def test_convnet_takes_sequences():
    net = ConvNet(channels=(18, 36), batch_norm=True).build((9, 128), 6)
    assert isinstance(net.conv1, nn.Conv1d)
    assert isinstance(net.norm2, nn.BatchNorm1d)
    assert net.head.in_features == 36 * 32
    assert output(net, (9, 128)) == (2, 6)


@pytest.mark.parametrize(
    ("pool_every", "expected"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), ((1, 4), [1, 4]), ((), [])]
)
def test_where_pooling_and_dropout_go(pool_every, expected):
    net = ConvNet(channels=(2, 2, 2, 2), pool_every=pool_every, pool="avg", dropout=0.2).build((1, 32, 32), 10)
    assert [int(name[4:]) for name in names(net) if name.startswith("pool")] == expected
    assert [int(name[7:]) for name in names(net) if name.startswith("dropout")] == expected
    assert all(isinstance(m, nn.AvgPool2d) for name, m in net.named_children() if name.startswith("pool"))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 5, "stride": 2},
        {"kernel": 4, "padding": "valid", "pool": "none"},
        {"pool_size": 3, "dense": (7, 6), "batch_norm": True, "dropout": 0.5},
        {"activation": "none"},
    ],
)
@pytest.mark.parametrize("shape", [(3, 33, 20), (2, 41)])
def test_the_head_fits_whatever_the_options(options, shape):
    assert output(ConvNet(channels=(3, 4), **options).build(shape, 5), shape) == (2, 5)


@pytest.mark.parametrize(
    "model", [ConvNet(channels=(64, 64), initialisation="gaussian"), MLP(widths=(400,), initialisation="gaussian")]
)
def test_gaussian_initialisation_has_the_documents_variance(model):
    torch.manual_seed(0)
    net = model.build((8, 16, 16), 50)
    weights = torch.cat([p.flatten() for name, p in net.named_parameters() if name.endswith("weight")])
    assert weights.var().item() == pytest.approx(0.05, rel=0.03)  # about five standard errors of 40,000 draws
    assert weights.mean().item() == pytest.approx(0, abs=0.006)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_the_seed_decides_the_weights():
    def build():
        torch.manual_seed(5)
        return ConvNet(channels=(2,)).build((1, 8, 8), 3).head.weight

    assert torch.equal(build(), build())


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (ConvNet(channels=(2,)), (7,), r"convnet takes inputs .* the data's have \(7,\); use mlp"),
        (ConvNet(channels=(2, 2, 2), padding="valid"), (1, 8, 8), "conv3 has a kernel larger than its map"),
        (LeNet5(), (1, 12, 12), "lenet-5 takes images .* of 16x16 or more"),
        (LeNet5(), (30,), "lenet-5 takes images"),
    ],
)
def test_data_that_do_not_fit(model, shape, message):
    with pytest.raises(RecipeError, match=message):
        model.build(shape, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "kernel: padding: same needs an odd kernel"),
        ({"pool_every": (1, 3)}, "pool_every: there are 2 convolutions, given"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(channels=(2, 2), **options)


def test_smallnet_is_that_of_expandnets_table_9():
    net = SmallNet(kernel=7).build((3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == 66186  # 66.19 thousand; 72.04 for 100 classes
    assert sum(p.numel() for p in SmallNet(kernel=7).build((3, 32, 32), 100).parameters()) == 72036
    assert net.fc1.in_features == 512
    assert output(net, (3, 32, 32)) == (2, 10)
    with pytest.raises(RecipeError, match="smallnet takes images of 8 x 8 and more"):
        SmallNet().build((64,), 10)


def test_smallnet_with_a_fourth_convolution_is_that_of_expandnets_table_6():
    net = SmallNet(channels=(8, 16, 32, 64)).build((3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == 150346  # 150.35 thousand
    assert net.fc1.weight.shape == (64, 256)
    assert output(net, (3, 32, 32)) == (2, 10)
    with pytest.raises(RecipeError, match="smallnet takes images of 16 x 16 and more"):
        SmallNet(channels=(8, 16, 32, 64)).build((3, 8, 8), 10)


def test_smallnet_keeps_its_layers_names_whatever_its_widths():
    names = [name for name, _ in SmallNet().build((3, 32, 32), 10).named_children()]
    assert names[-5:] == ["pool3", "flatten", "fc1", "act4", "head"]
    wide = SmallNet(channels=(4,), hidden=(6, 5)).build((1, 9, 8), 3)
    assert [name for name, _ in wide.named_children()][4:] == ["flatten", "fc1", "act2", "fc2", "act3", "head"]
    assert [tuple(layer.weight.shape) for layer in (wide.fc1, wide.fc2, wide.head)] == [(6, 64), (5, 6), (3, 5)]
    linear = SmallNet(hidden=()).build((3, 32, 32), 10)
    assert linear.head.weight.shape == (10, 512)


def test_mobilenet_has_the_documented_size():
    net = MobileNet().build((3, 224, 224), 1000)
    assert sum(p.numel() for p in net.parameters()) == 4_231_976  # 4.2 million (Howard et al. 2017, Table 6)
    half = MobileNet(width=0.5).build((3, 224, 224), 1000)
    assert sum(p.numel() for p in half.parameters()) == 1_331_592  # 1.3 million
    assert net.block13.pointwise.weight.shape == (1024, 1024, 1, 1)


@pytest.mark.parametrize(("small", "positions"), [(False, 1), (True, 4)])
def test_mobilenet_keeps_small_images_larger(small, positions):
    net = MobileNet(width=0.25, small_images=small).build((3, 32, 32), 10)
    assert output(net, (3, 32, 32)) == (2, 10)
    assert net[:-3](torch.zeros(1, 3, 32, 32)).shape[2:] == (positions, positions)
    with pytest.raises(RecipeError, match="mobilenet takes images"):
        MobileNet().build((9,), 10)


# as published, or as the common implementations for 32 x 32 images count them, with 10 classes
SIZES = {
    "resnet-18": (ResNet(), 11_173_962),
    "resnet-34": (ResNet(depth=34), 21_282_122),
    "resnet-50": (ResNet(depth=50), 23_520_842),
    "resnet-101": (ResNet(depth=101), 42_512_970),
    "resnet-152": (ResNet(depth=152), 58_156_618),
    "wide-resnet-28-10": (WideResNet(), 36_479_194),
    "wide-resnet-16-4": (WideResNet(depth=16, widen=4), 2_748_890),
    "densenet-40": (DenseNet(), 1_019_722),
    "vgg-19": (VGG(), 20_035_018),
    "mobilenet-v2": (MobileNetV2(), 2_236_682),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_for_small_images_have_their_published_size(name):
    model, parameters = SIZES[name]
    with torch.device("meta"):
        net = model.build((3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    "model",
    [ResNet(width=0.25), ResNet(depth=50, width=0.1), WideResNet(depth=10, widen=1), DenseNet(depth=10), VGG(width=0.1),
     MobileNetV2(width=0.25)],
    ids=lambda model: model.kind,
)  # fmt: skip
def test_networks_for_small_images_trace_and_keep_their_outputs(model):
    torch.manual_seed(0)
    net = model.build((3, 32, 32), 7)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trace(net).eval()(x), net.eval()(x))
    assert output(net, (3, 32, 32)) == (2, 7)
    with pytest.raises(RecipeError, match=r"takes images \(C, H, W\)"):
        model.build((20,), 7)


def test_depths_that_there_are_not():
    with pytest.raises(ValueError, match="take 16, 22, 28"):
        WideResNet(depth=20)
    with pytest.raises(ValueError, match="take 40, 64, 100"):
        DenseNet(depth=41)
    with pytest.raises(RecipeError, match="32 pixels a side"):
        VGG().build((1, 28, 28), 10)
