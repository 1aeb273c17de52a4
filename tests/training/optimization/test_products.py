"""Products of expanded layers that are formed once a step, and, as on a GPU, from a recording."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compresskit.graph.layers.expanded import Expanded
from compresskit.training.optimization.products import Products, online_layers


def network(*, biased: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Expanded("Conv2d", 2, 3, (((8, (1, 1)), (6, (3, 3)), (3, (1, 1))),), biased, (3, 3), (1, 1), (1, 1), (1, 1)),
        nn.ReLU(),
        nn.Flatten(),
        Expanded("Linear", 48, 4, (((8, ()), (4, ())),)),
    ).double()


class Recorder:
    """In the place of CUDA graphs: buffers that every replay writes anew, and what it was asked to record."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Tensor, ...]] = []
        self.matmuls: list[bool] = []
        self.replays = 0

    def __call__(self, call: Callable[..., tuple[Tensor, ...]], sample: tuple[Tensor, ...], **_: object) -> object:
        self.recorded.append(sample)
        self.matmuls.append(torch.backends.cuda.matmul.allow_tf32)
        assert not torch.is_autocast_enabled("cpu")

        def replay(*given: Tensor) -> tuple[Tensor, ...]:
            assert [g.data_ptr() for g in given] == [s.data_ptr() for s in sample]  # else there would be a copy
            self.replays += 1
            return call(*given)

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    return made


def gradients(net: nn.Module, products: Products, parts: int, x: Tensor) -> list[Tensor]:
    """Of one step whose batch is cut into parts, as a trainer takes it."""
    net.zero_grad()
    try:
        products.form(parts)
        for number, piece in enumerate(x.tensor_split(parts), 1):
            if number == parts:
                products.before_last()
            functional.mse_loss(net(piece), torch.ones(len(piece), 4).double(), reduction="sum").backward()
    finally:
        products.release()
    return [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_recorded_products_give_the_same_gradients(recorder: Recorder, parts: int, biased: bool) -> None:
    net = network(biased=biased)
    plain, x = copy.deepcopy(net), torch.randn(6, 2, 4, 4).double()
    recorded, formed = Products(online_layers(net), recorded=True), Products(online_layers(plain), recorded=False)
    for _ in range(2):
        for own, expected in zip(gradients(net, recorded, parts, x), gradients(plain, formed, 1, x), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
    assert len(recorder.recorded) == 2  # convolutions, and linear layers
    assert recorder.replays == 2 * 2
    assert all(layer.product is None for layer in net.modules() if isinstance(layer, Expanded))


def test_convolutions_alone_are_rounded_as_torch_rounds_them(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = network(), torch.randn(6, 2, 4, 4).double()
    gradients(net, Products(online_layers(net), recorded=True), 1, x)
    assert recorder.matmuls == [True, False]
    assert not torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    gradients(net, Products(online_layers(net), recorded=True), 1, x)
    assert recorder.matmuls[2:] == [False, False]


def test_nothing_is_recorded_where_no_factor_is_trained(recorder: Recorder) -> None:
    net = network().requires_grad_(requires_grad=False)
    products = Products(online_layers(net), recorded=True)
    products.form(1)
    products.before_last()
    assert not recorder.recorded
    assert not net(torch.ones(1, 2, 4, 4).double()).requires_grad


def test_frozen_factors_stay_frozen() -> None:
    net = network().requires_grad_(requires_grad=False)
    products = Products(online_layers(net), recorded=False)
    products.form(2)
    products.before_last()
    assert not net(torch.ones(1, 2, 4, 4).double()).requires_grad
    products.release()


def test_a_step_of_one_part_leaves_it_to_the_layers() -> None:
    net = network()
    products = Products(online_layers(net), recorded=False)
    products.form(1)
    assert all(layer.product is None for layer in net.modules() if isinstance(layer, Expanded))
