"""Jacobian spectra of whole networks against torch's own Jacobians, decomposed by numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from compresskit.errors import RecipeError
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.graph.trace import trace
from compresskit.models.parts.activations import MaxMin
from compresskit.numerics.orthogonal.matrices import orthogonal
from compresskit.passes.isometry.jacobians import jacobian as jacobian_of
from compresskit.passes.isometry.jacobians import push_columns
from compresskit.passes.isometry.network import NetworkIsometry, isometry
from compresskit.passes.isometry.options import Isometry
from compresskit.passes.isometry.orthogonal_layer import orthogonal_layer
from compresskit.passes.isometry.plan import plan_isometry
from tests.graph.nets import Residual, make


def measured(module: nn.Module, images: torch.Tensor, seed: int = 0, **options) -> NetworkIsometry:
    return isometry(plan_isometry(trace(module), images.shape[1:], Isometry(**options)), images, seed)


def values(function, images: torch.Tensor) -> np.ndarray:
    """(images, k) ascending singular values, one image at a time."""
    found = []
    for image in images.split(1):
        matrix = jacobian(function, image)
        flat = matrix.reshape(math.prod(matrix.shape[: matrix.ndim - image.ndim]), -1).numpy()
        found.append(np.sort(np.linalg.svd(flat, compute_uv=False)))
    return np.stack(found)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)
    ).double()


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).double()


def test_every_layer_and_depth_of_a_dense_net():
    net, images = mlp(), drawn(3, 3, 4)
    found = measured(net, images)
    assert [(layer.name, layer.sides) for layer in found.layers] == [("1", (5, 12)), ("3", (9, 5)), ("5", (3, 9))]
    for layer, (first, last) in zip(found.layers, [(1, 3), (3, 5), (5, 6)], strict=True):
        inputs = net[:first](images).detach()
        np.testing.assert_allclose(layer.own.values, values(net[first:last], inputs), atol=1e-12)
        np.testing.assert_allclose(
            layer.depth.values, values(net[:last], images)[:, -layer.depth.values.shape[1] :], atol=1e-12
        )
    np.testing.assert_allclose(found.end.values, values(net, images), atol=1e-12)
    depth = found.layers[1].depth.values
    assert depth.shape == (3, 9)  # of 9 x 12, though all goes through 5 neurons
    assert (depth[:, :4] == 0).all()


def test_every_layer_and_depth_of_a_convolutional_net():
    net, images = convolutions(), drawn(2, 2, 8, 8)
    found = measured(net, images)
    for layer, (first, last) in zip(found.layers, [(0, 2), (3, 5), (6, 7)], strict=True):
        inputs = net[:first](images.clone()).detach()
        np.testing.assert_allclose(layer.own.values, values(lambda x: net[first:last](x.clone()), inputs), atol=1e-12)  # noqa: B023
        np.testing.assert_allclose(layer.depth.values, values(lambda x: net[:last](x.clone()), images), atol=1e-12)  # noqa: B023


def test_a_residual_net_takes_the_norm_along_but_no_sum():
    net, images = make(Residual), drawn(2, 2, 8, 8)
    found = {layer.name: layer for layer in measured(net, images).layers}
    block = net.block1
    stem = net.stem(images).detach()
    np.testing.assert_allclose(
        found["block1.conv1"].own.values, values(lambda x: torch.relu(block.norm1(block.conv1(x))), stem), atol=1e-12
    )
    hidden = torch.relu(block.norm1(block.conv1(stem))).detach()
    np.testing.assert_allclose(
        found["block1.conv2"].own.values, values(lambda x: block.norm2(block.conv2(x)), hidden), atol=1e-12
    )
    np.testing.assert_allclose(
        found["block2.shortcut"].depth.values,
        values(lambda x: net.block2.shortcut(block(net.stem(x))), images),
        atol=1e-12,
    )
    np.testing.assert_allclose(measured(net, images).end.values, values(net, images), atol=1e-12)


def test_multiplying_along_the_chain_is_differentiating_from_scratch(monkeypatch):
    images, multiplied = drawn(3, 3, 4), []

    def counted(*arguments):
        multiplied.append(1)
        return push_columns(*arguments)

    monkeypatch.setattr("compresskit.passes.isometry.network.push_columns", counted)
    carried = measured(mlp(), images).layers
    assert len(multiplied) == 3  # two layers, and from the last to the output
    for layer in carried:
        (scratch,) = measured(mlp(), images, layers=(layer.name,)).layers
        torch.testing.assert_close(layer.depth.values, scratch.depth.values)


def test_a_start_inside():
    net, images = mlp(), drawn(2, 3, 4)
    found = measured(net, images, start="3")
    hidden = net[:3](images).detach()
    assert found.layers[0].depth is None  # it comes before the start
    np.testing.assert_allclose(found.layers[2].depth.values, values(net[3:], hidden), atol=1e-12)
    np.testing.assert_allclose(found.end.values, values(net[3:], hidden), atol=1e-12)


@pytest.mark.parametrize("make_net", [mlp, convolutions])
def test_estimates_are_near_what_is_exact(make_net):
    images = drawn(4, 3, 4) if make_net is mlp else drawn(4, 2, 8, 8)
    exact = measured(make_net(), images)
    found = measured(make_net(), images, exact=0, probes=400, steps=40)
    for layer, truth in zip(found.layers, exact.layers, strict=True):
        for one, other in ((layer.own, truth.own), (layer.depth, truth.depth)):
            assert one.estimated
            assert one.mean == pytest.approx(other.mean, rel=0.1)  # 100 vectors an image
            assert one.largest == pytest.approx(other.largest, rel=1e-6)
        assert layer.orthogonal is None
        assert math.isnan(layer.p)


def test_images_in_parts_are_all_of_them(monkeypatch):
    images = drawn(5, 3, 4)
    whole = measured(mlp(), images)
    monkeypatch.setattr("compresskit.passes.isometry.plan._MEMORY", 3 * 8 * 60 * 2)
    told = []
    plan = plan_isometry(trace(mlp()), (3, 4), Isometry())
    assert 1 <= plan.at_once < 5
    parts = isometry(plan, images, on_layer=lambda: told.append(1))
    assert len(told) == 3 * -(-5 // plan.at_once)
    for one, other in zip(parts.layers, whole.layers, strict=True):
        torch.testing.assert_close(one.own.values, other.own.values)
        torch.testing.assert_close(one.orthogonal.values, other.orthogonal.values)
        torch.testing.assert_close(one.depth.values, other.depth.values)


def test_an_orthogonal_layer_does_not_differ_and_a_gaussian_one_does():
    layers = [nn.Linear(64, 64), nn.Linear(64, 64)]
    layers[0].weight.data = 1.1 * orthogonal(64, 64, torch.Generator().manual_seed(0)).float()
    nn.init.normal_(layers[1].weight, std=0.125, generator=torch.Generator().manual_seed(0))
    found = measured(nn.Sequential(*layers), drawn(2, 64))
    assert found.layers[0].p == 1  # its weights are float32
    np.testing.assert_allclose(found.layers[0].orthogonal.values, 1.1, rtol=1e-6)
    assert found.layers[1].p < 1e-6
    squares = found.layers[1].own.values.square().mean(), found.layers[1].orthogonal.values.square().mean()
    assert float(squares[0]) == pytest.approx(float(squares[1]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6, 6)),
        (nn.Conv1d(3, 5, 3, padding=1, bias=False), (3, 8)),
        (GroupedLinear(8, 6, groups=2), (8,)),
        (SkewConvolution(4, 6, (3, 3)), (4, 5, 5)),
    ],
)
def test_the_dense_orthogonal_layer(layer, shape):
    dense = orthogonal_layer(layer.double(), torch.Generator().manual_seed(0))
    inputs = drawn(1, *shape)
    assert dense(inputs).shape == layer(inputs).shape
    one = (
        1.0
        if isinstance(layer, SkewConvolution)
        else float(layer.weight.detach().norm()) / math.sqrt(min(dense.weight.shape[:2]))
    )
    np.testing.assert_allclose(values(dense, inputs), one, rtol=1e-10)
    assert (dense.bias is None) == (layer.bias is None)
    again = orthogonal_layer(layer, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.weight, dense.weight)


def test_skew_and_grouped_layers_are_looked_at():
    torch.manual_seed(0)
    order = ChannelPermutation(8)
    order.order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    net = nn.Sequential(
        SkewConvolution(2, 2, (3, 3), terms=20), nn.Flatten(), GroupedLinear(32, 8, groups=4), order, nn.Tanh()
    ).double()
    images = drawn(2, 2, 4, 4)
    skew, grouped = measured(net, images).layers
    np.testing.assert_allclose(skew.own.values, 1, rtol=1e-6)  # of the series 20 terms are taken
    np.testing.assert_allclose(grouped.own.values, values(net[2:], net[:2](images).detach()), atol=1e-12)
    np.testing.assert_allclose(grouped.depth.values, values(net, images), atol=1e-12)


def test_maxmin_belongs_to_the_layer_before_it():
    net = nn.Sequential(nn.Linear(6, 8), MaxMin(), nn.Linear(8, 8), MaxMin()).double()
    images = drawn(3, 6)
    found = measured(net, images).layers
    np.testing.assert_allclose(found[1].own.values, values(net[2:], net[:2](images).detach()), atol=1e-12)
    np.testing.assert_allclose(found[1].depth.values, values(net, images), atol=1e-12)
    plan = plan_isometry(trace(net), (6,), Isometry())
    assert [part.target.name for part in plan.parts] == ["cat", "cat_1"]


def test_a_relu_in_place_leaves_what_it_is_given():
    inputs = drawn(2, 4)
    before = inputs.clone()
    found = jacobian_of(nn.ReLU(inplace=True), inputs)
    torch.testing.assert_close(found, torch.diag_embed((before > 0).double()))
    assert torch.equal(inputs, before)


def test_refusals():
    network = trace(make(Residual))
    with pytest.raises(RecipeError, match="start: no layer is named 'bloc1.conv1'; did you mean 'block1.conv1'"):
        plan_isometry(network, (2, 8, 8), Isometry(start="bloc1.conv1"))
    with pytest.raises(RecipeError, match="start: paths lead past layer 'block1.conv2'"):
        plan_isometry(network, (2, 8, 8), Isometry(start="block1.conv2"))
    with pytest.raises(RecipeError, match="'steem'"):
        plan_isometry(network, (2, 8, 8), Isometry(layers=("steem",)))


def test_the_network_stays_as_it_was():
    net = mlp().float().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measured(net, drawn(2, 3, 4).float())
    assert net.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
