"""Expanded layers: the same function and gradients both ways, and the compact layer that they stand for."""

import copy

import pytest
import torch
from torch import nn

from compresskit.graph.format.table import from_table, named_tensors, to_table
from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.trace import trace

CL = lambda taps, one, g: (((4 * g, one), (6 * g, taps), (2 * g, one)),)  # noqa: E731
CK5 = lambda taps, one, g: (((4 * g, (3,) * len(taps)), (2 * g, (3,) * len(taps))),)  # noqa: E731
ACNET = lambda taps, one, g: (((2 * g, taps),), ((2 * g, (1, *taps[1:])),), ((2 * g, (taps[0], 1)),))  # noqa: E731

LAYERS = {
    "1-D": (CL, {"kind": "Conv1d", "kernel_size": (3,), "stride": (2,), "padding": (1,), "dilation": (1,)}),
    "2-D": (CL, {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}),
    "2-D, no bias": (
        CL, {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "biased": False}
    ),
    "3-D": (
        CL, {"kind": "Conv3d", "kernel_size": (3, 1, 2), "stride": (1, 2, 1), "padding": (1, 0, 1),
             "dilation": (1, 1, 1)}
    ),
    "even, stride, dilation": (CL, {"kernel_size": (4, 3), "stride": (2, 3), "padding": (2, 1), "dilation": (2, 1)}),
    "1x1, stride": (CL, {"kernel_size": (1, 1), "stride": (2, 2), "padding": (1, 0), "dilation": (1, 1)}),
    "ck": (CK5, {"kernel_size": (5, 5), "stride": (2, 1), "padding": (2, 2), "dilation": (1, 1)}),
    "ck, dilation": (CK5, {"kernel_size": (5, 5), "stride": (1, 2), "padding": (3, 4), "dilation": (2, 1)}),
    "ck, 1-D": (CK5, {"kind": "Conv1d", "kernel_size": (5,), "stride": (2,), "padding": (1,), "dilation": (2,)}),
    "acnet": (ACNET, {"kernel_size": (3, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 1)}),
    "acnet, oblong": (ACNET, {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 3), "dilation": (2, 1)}),
    "same": (CL, {"kernel_size": (4, 3), "stride": (1, 1), "padding": "same", "dilation": (1, 2)}),
    "valid": (CK5, {"kernel_size": (5, 5), "stride": (1, 1), "padding": "valid", "dilation": (1, 1)}),
    "circular": (
        CL, {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "padding_mode": "circular"}
    ),
    "reflect": (
        ACNET,
        {"kernel_size": (3, 3), "stride": (2, 2), "padding": (2, 1), "dilation": (1, 1), "padding_mode": "reflect"},
    ),
}  # fmt: skip


def make(name: str, groups: int) -> Expanded:
    torch.manual_seed(0)
    branches, options = LAYERS[name]
    options = {"kind": "Conv2d", **options}
    taps = options["kernel_size"]
    made = branches(taps, (1,) * len(taps), groups)
    return Expanded(in_channels=3 * groups, out_channels=2 * groups, branches=made, groups=groups, **options).double()


def batch(layer: Expanded) -> torch.Tensor:
    return torch.randn(2, layer.in_channels, *[11] * len(layer.kernel_size), dtype=torch.float64, requires_grad=True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of the even kernel: it pads a copy
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_online_is_sequential_with_the_same_gradients(name, groups):
    online = make(name, groups)
    sequential = copy.deepcopy(online)
    sequential.mode = "sequential"
    x = batch(online)
    values = [layer(x) for layer in (online, sequential)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(values[0])
    gradients = [
        torch.autograd.grad((value * weight).sum(), [x, *layer.parameters()])
        for value, layer in zip(values, (online, sequential), strict=True)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)  # sums of some hundred products


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of the even kernel: it pads a copy
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_the_compact_layer_is_torchs_own_and_does_the_same_at_the_border_too(name, groups):
    layer = make(name, groups)
    layer.mode = "sequential"
    compact = layer.compact()
    assert type(compact).__name__ == layer.kind
    for option in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
        assert getattr(compact, option) == getattr(layer, option)
    assert (compact.bias is None) == (not layer.biased)
    x = batch(layer)
    torch.testing.assert_close(compact(x), layer(x), rtol=1e-12, atol=1e-12)
    single = copy.deepcopy(layer).float()
    value, expected = single.compact()(x.float()), layer(x)
    assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()  # float32


@pytest.mark.parametrize("widths", [(8,), (8, 6)])
def test_linear(widths):
    torch.manual_seed(0)
    layer = Expanded("Linear", 5, 3, (tuple((width, ()) for width in (*widths, 3)),)).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64)  # of any batch dimensions
    sequential = x
    for factor in layer.factors:
        sequential = factor(sequential)
    torch.testing.assert_close(layer(x), sequential, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.compact()(x), sequential, rtol=1e-12, atol=1e-12)
    layer.mode = "sequential"
    assert torch.equal(layer(x), sequential)


def test_factors_are_drawn_as_torch_draws_layers():
    torch.manual_seed(3)
    layer = Expanded("Conv2d", 3, 4, (((6, (1, 1)), (4, (3, 3))),), True, (3, 3), (1, 1), (1, 1), (1, 1))
    torch.manual_seed(3)
    for ours, theirs in zip(layer.factors, (nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3)), strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_a_net_of_them_is_stored_as_plain_data():
    net = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    net.add_submodule("0", Expanded("Linear", 4, 4, (((8, ()), (4, ())),), mode="sequential", nonlinear=True))
    table = to_table(net)
    read = from_table(table)
    assert table["modules"]["0"]["kind"] == "Expanded"
    assert to_table(read) == table
    assert [name for name, _ in named_tensors(read)] == [name for name, _ in named_tensors(net)]


def test_the_weight_is_multiplied_in_full_precision_under_autocast():
    layer = Expanded("Linear", 4, 3, (((64, ()), (3, ())),))
    weight, _ = layer.contracted()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.contracted()[0], weight)
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16


def test_nonlinear_factors_have_no_product():
    layer = Expanded("Linear", 4, 3, (((8, ()), (3, ())),), mode="sequential", nonlinear=True)
    x = torch.randn(5, 4)
    first, second = layer.factors
    assert torch.equal(layer(x), second(torch.relu(first(x))))
    with pytest.raises(ValueError, match="no product"):
        layer.compact()
    with pytest.raises(ValueError, match="use mode: sequential"):
        Expanded("Linear", 4, 3, (((8, ()), (3, ())),), nonlinear=True)
    with pytest.raises(ValueError, match="takes mode"):
        Expanded("Linear", 4, 3, (((8, ()), (3, ())),), mode="fast")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", ["acnet", "acnet, oblong", "reflect"])
def test_norms_of_branches_fold_into_kernels_and_bias(name, biased, groups):
    """Branch by branch, torch's own convolution and batch norm, then their sum."""
    plain = make(name, groups)
    options = {key: getattr(plain, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    made = (plain.in_channels, plain.out_channels, plain.branches, biased)
    layer = Expanded("Conv2d", *made, groups=groups, mode="sequential", norms=True, **options).double()
    for norm in layer.branch_norms:
        nn.init.uniform_(norm.weight, -1, 2)
        nn.init.normal_(norm.bias)
    for _ in range(4):
        layer(3 + 2 * batch(layer))
    x = batch(layer)
    layer.eval()
    torch.testing.assert_close(layer.compact()(x), layer(x), rtol=1e-12, atol=1e-12)
    expected = 0
    for number, norm in enumerate(layer.branch_norms):
        alone = Expanded("Conv2d", *made, groups=groups, mode="sequential", **options).double()
        alone.load_state_dict({key: value for key, value in layer.state_dict().items() if "norms" not in key})
        for other, factor in enumerate(alone.factors):
            if other != number:
                nn.init.zeros_(factor.weight)
                if factor.bias is not None:
                    nn.init.zeros_(factor.bias)
        expected = expected + norm(alone(x))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_norms_of_branches_do_not_run_online():
    with pytest.raises(ValueError, match="use mode: sequential, without nonlinear"):
        Expanded("Conv2d", 1, 1, (((1, (3, 3)),),), True, (3, 3), (1, 1), (1, 1), (1, 1), norms=True)


def test_a_net_with_norms_of_branches_is_stored_with_their_statistics():
    net = trace(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()))
    made = ((((2, (3, 3)),), ((2, (1, 3)),)), False, (3, 3), (1, 1), (0, 0), (1, 1))
    net.add_submodule("0", Expanded("Conv2d", 2, 2, *made, mode="sequential", norms=True))
    read = from_table(to_table(net))
    names = [name for name, _ in named_tensors(read)]
    assert names == [name for name, _ in named_tensors(net)]
    assert "0.branch_norms.1.running_var" in names


def test_smaller_kernels_lie_in_the_middle():
    layer = make("acnet, oblong", 1)
    with torch.no_grad():
        for factor in layer.factors:
            factor.weight.fill_(1)
    weight, _ = layer.contracted()
    row, column = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    row[1], column[:, 2] = 1, 1
    assert torch.equal(weight[0, 0], 1 + row + column)
