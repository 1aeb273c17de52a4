"""A stack of grouped layers against the same layers one by one, forward and backward, in both of its ways."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from compresskit.graph.counting import count
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.trace import trace
from compresskit.graph.weights import weights_of

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def made(layers=3, activation="tanh", bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    return GroupedStack(12, 3, layers, activation, bias).to(dtype)


def one_by_one(stack):
    """The same layers as modules, each behind the shuffle that its inputs are read by."""
    modules = []
    for layer in range(stack.layers):
        linear = GroupedLinear(stack.features, stack.features, stack.groups, stack.bias is not None).to(stack.weight)
        linear.weight = nn.Parameter(stack.weight[layer].detach().clone())
        if stack.bias is not None:
            linear.bias = nn.Parameter(stack.bias.view(stack.layers, -1)[layer].detach().clone())
        shuffle = ChannelPermutation(stack.features, stack.features // stack.groups, -1)
        modules += [shuffle, linear, ACTIVATIONS[stack.activation]()]
    return nn.Sequential(*modules)


def gradients(network, x, direction):
    x = x.clone().requires_grad_()
    y = network(x)
    (y * direction).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_its_layers_one_by_one(training, bias, activation):
    stack = made(activation=activation, bias=bias).train(training)
    layers = one_by_one(stack)
    x, direction = torch.randn(2, 7, 12, dtype=torch.float64)
    for ours, theirs in zip(gradients(stack, x, direction), gradients(layers, x, direction), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    for layer in range(3):
        torch.testing.assert_close(stack.weight.grad[layer], layers[3 * layer + 1].weight.grad, rtol=1e-12, atol=1e-13)
        if bias:
            own = stack.bias.grad.view(3, 12)[layer]
            torch.testing.assert_close(own, layers[3 * layer + 1].bias.grad, rtol=1e-12, atol=1e-13)


def test_blocks_read_strided_inputs():
    """Written out: block g of 3 reads inputs g, g + 3, g + 6, g + 9."""
    stack = made(layers=1, activation="relu").eval()
    x = torch.randn(5, 12, dtype=torch.float64)
    weight, bias = stack.weight[0].detach().numpy(), stack.bias.detach().numpy()
    expected = np.zeros((5, 12))
    for output in range(12):
        inputs = x.numpy()[:, output // 4 :: 3]
        expected[:, output] = np.maximum(inputs @ weight[output] + bias[output], 0)
    np.testing.assert_allclose(stack(x).detach(), expected, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    stack = made(activation=activation)

    def run(x, weight, bias):
        return torch.func.functional_call(stack, {"weight": weight, "bias": bias}, (x,))

    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, stack.weight, stack.bias))


def test_single_precision_is_as_exact_as_torchs():
    stack = made(layers=20, dtype=torch.float32)
    x = torch.randn(16, 12)
    exact = copy.deepcopy(stack).double()(x.double())
    theirs = one_by_one(stack)(x)
    assert (stack(x) - exact).abs().max() < 3 * (theirs - exact).abs().max() + 1e-7  # a few units in the last place


@pytest.mark.parametrize("shape", [(12,), (2, 3, 12), (0, 12)])
def test_batches_of_any_shape(shape):
    stack, x = made(), torch.randn(shape, dtype=torch.float64)
    assert stack(x).shape == shape
    with torch.no_grad():
        assert stack(x).shape == shape
    torch.testing.assert_close(stack(x), one_by_one(stack)(x.reshape(-1, 12)).view(shape))


def test_memory_is_used_again_only_when_it_is_free():
    """Two steps at once, then their backward passes: each has its own values."""
    stack = made()
    first, second = (x.requires_grad_() for x in torch.randn(2, 4, 12, dtype=torch.float64).unbind())
    expected = [gradients(one_by_one(stack), x.detach(), 1)[1] for x in (first, second)]
    outputs = [stack(first), stack(second)]
    kept = outputs[0].detach().clone()
    for y in reversed(outputs):
        y.sum().backward()
    for x, gradient in zip((first, second), expected, strict=True):
        torch.testing.assert_close(x.grad, gradient)
    stack(torch.randn(4, 12, dtype=torch.float64, requires_grad=True))
    assert outputs[0].equal(kept)  # what was returned is nobody's memory


def test_a_second_backward_pass_over_used_memory_is_refused():
    stack = made()
    y = stack(torch.randn(4, 12, dtype=torch.float64)).sum()
    y.backward(retain_graph=True)
    stack(torch.randn(4, 12, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_threads_are_given_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made()(torch.randn(4, 12, dtype=torch.float64)).sum().backward()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_copies_take_no_memory_along():
    stack = made()
    stack(torch.randn(400, 12, dtype=torch.float64)).sum().backward()
    assert len(pickle.dumps(stack)) < 10_000
    twin = copy.deepcopy(stack)
    x = torch.randn(4, 12, dtype=torch.float64)
    one, other = stack(x), twin(x)
    assert one.equal(other)
    one.sum().backward()
    other.sum().backward()


def test_jacobians_by_batches_of_gradients_in_eval_mode():
    stack, x = made().eval(), torch.randn(1, 12, dtype=torch.float64, requires_grad=True)
    y = stack(x)
    (jacobian,) = torch.autograd.grad(y, x, torch.eye(12, dtype=torch.float64)[:, None], is_grads_batched=True)
    expected = torch.autograd.functional.jacobian(one_by_one(stack), x)[0, :, 0]
    torch.testing.assert_close(jacobian[:, 0], expected)


def test_autocast_runs_layer_by_layer():
    stack = made(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(torch.randn(4, 12))
    assert y.isfinite().all()
    y.float().sum().backward()
    assert stack.weight.grad.isfinite().all()


def test_counts_and_weights():
    network = trace(nn.Sequential(made(dtype=torch.float32)))
    counts = count(network, (12,))
    assert counts.parameters == 3 * (12 * 4 + 12)
    assert counts.macs == 3 * 12 * 4
    weights, others = weights_of(network)
    assert [(weight.name, weight.kind, weight.groups, tuple(weight.tensor.shape)) for weight in weights] == [
        (f"0.{number}", "linear", 3, (12, 4)) for number in range(3)
    ]
    assert not others


def test_what_it_cannot_be():
    for arguments in ((12, 5, 2), (12, 3, 2, "sigmoid")):
        with pytest.raises(ValueError, match="tanh or relu and a divisor"):
            GroupedStack(*arguments)


@pytest.mark.parametrize("bias", [True, False])
def test_programs_take_batches_of_any_size(bias):
    """As torch.export writes them."""
    network = nn.Sequential(nn.Linear(5, 12), made(bias=bias, dtype=torch.float32), nn.Linear(12, 3)).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.randn(4, 5),), dynamic_shapes=shapes).module()
    for size in (1, 4, 7):
        x = torch.randn(size, 5)
        torch.testing.assert_close(program(x), network(x))


@pytest.fixture
def in_numpy(monkeypatch):
    """Fails where torch computes layer by layer what numpy could."""

    def refused(*_):
        raise AssertionError("layer by layer in torch")

    monkeypatch.setattr(GroupedStack, "_one_by_one", refused)


@torch.no_grad()
@pytest.mark.usefixtures("in_numpy")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_without_gradients_it_is_its_layers_one_by_one(bias, activation, layers, dtype):
    stack = made(layers, activation, bias, dtype).eval()
    for shape in ((1, 12), (7, 12), (12,), (2, 3, 12)):
        x = torch.randn(shape, dtype=dtype)
        y = stack(x)
        expected = one_by_one(stack)(x.reshape(-1, 12)).view(shape)
        torch.testing.assert_close(y, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
        with torch.inference_mode():
            assert stack(x).equal(y)


@torch.no_grad()
@pytest.mark.usefixtures("in_numpy")
def test_it_reads_the_weights_of_now():
    """However they were changed since the last call."""
    stack, x = made().eval(), torch.randn(4, 12, dtype=torch.float64)
    found = [stack(x)]

    def changed(stack, x=x):
        found.append(stack(x).double())
        torch.testing.assert_close(found[-1], one_by_one(stack)(x).double(), rtol=1e-6, atol=1e-6)
        assert not found[-1].allclose(found[-2], rtol=0, atol=1e-9)

    with torch.enable_grad():
        _Trained(stack).step(x)
    changed(stack)
    stack.load_state_dict({name: tensor.flip(0) for name, tensor in stack.state_dict().items()})
    changed(stack)
    stack.weight.data[:, ::2] = 0
    changed(stack)
    changed(stack.float(), x.float())
    twin = copy.deepcopy(stack.double())
    twin.weight.mul_(0.5)
    changed(twin)
    stack.bias = nn.Parameter(stack.bias + 1)
    changed(stack)


class _Trained:
    """One step of SGD, in training mode."""

    def __init__(self, stack):
        self.stack, self.optimizer = stack, torch.optim.SGD(stack.parameters(), lr=0.1)

    def step(self, x):
        self.stack.train()(x).square().sum().backward()
        self.optimizer.step()
        self.stack.eval()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_what_follows_the_calls_sees_them():
    """Transformations, tangents, traces and dispatch modes, all of which pass numpy by."""
    stack, (x, tangent) = made().eval(), torch.randn(2, 4, 12, dtype=torch.float64)
    layers = one_by_one(stack)
    torch.testing.assert_close(torch.func.vmap(stack)(x), layers(x))
    expected = torch.func.jvp(layers, (x,), (tangent,))[1]
    torch.testing.assert_close(torch.func.jvp(stack, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        y = stack(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)
    torch.testing.assert_close(torch.jit.trace(stack, x)(tangent), layers(tangent))
    with FlopCounterMode(display=False) as counter:
        stack(x)
    assert counter.get_total_flops() == 2 * 4 * 3 * 12 * 4


@torch.no_grad()
@pytest.mark.usefixtures("in_numpy")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_infinity_and_nan_pass_without_a_warning(activation, recwarn):
    stack = made(layers=1, activation=activation).eval()
    x = torch.tensor([[torch.inf] * 12, [-torch.inf] * 12, [torch.nan] * 12, [1e308] * 12], dtype=torch.float64)
    torch.testing.assert_close(stack(x), one_by_one(stack)(x), equal_nan=True)
    assert not recwarn.list
