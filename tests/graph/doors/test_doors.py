"""Both doors: what comes in computes and trains as the module does, and leaves it as it was."""

import copy

import pytest
import torch
from torch import nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.exported import exported
from compresskit.graph.doors.prepared import prepared
from compresskit.graph.doors.self_check import check_eval, check_training
from compresskit.graph.format.table import from_table, to_table
from compresskit.graph.layers.sample_shape import SampleShape
from compresskit.graph.layers.stochastic_depth import StochasticDepth
from compresskit.graph.trace import trace
from tests.graph.doors import nets

MAPS = (3, 9, 9)


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(module: nn.Module, x) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs, gradients and buffers of one pass in training mode, on a copy."""
    module = copy.deepcopy(module).train()
    torch.manual_seed(3)
    found = module(x)
    found = found if isinstance(found, torch.Tensor) else found[0]
    found.square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found.detach(), gradients, dict(module.named_buffers())


def check_equal(module: nn.Module, network, x) -> None:
    with torch.no_grad():
        assert torch.equal(network.eval()(x), module.eval()(x))
    (one, gradients, buffers), (other, ours, kept) = step(module, x), step(network, x)
    assert torch.equal(one, other)
    assert len(gradients) == len(ours)
    for name, gradient in gradients.items():
        mine = ours.get(name, ours.get(name.replace(".act.", "_act.")))
        torch.testing.assert_close(mine, gradient, rtol=1e-5, atol=1e-6)
    for name in kept.keys() & buffers.keys():
        assert torch.equal(kept[name], buffers[name]), name


@pytest.mark.parametrize("through", ["fx", "export"])
def test_layers_of_others_become_those_of_torch_with_their_tensors(through):
    torch.manual_seed(0)
    net = nets.Ours().eval()
    network = trace(net, MAPS) if through == "fx" else exported(prepared(net), batch(2, *MAPS))
    if through == "fx":
        assert network.meta["entry"].door == "fx"
        kinds = {name: type(module) for name, module in network.named_modules()}
        assert kinds["1"] is nn.BatchNorm2d
        assert kinds["1_act"] is nn.PReLU
        assert kinds["3"] is nn.LayerNorm
        assert kinds["4"] is StochasticDepth
        assert kinds["7"] is nn.Linear
        assert network.get_parameter("1.weight") is net[1].weight
        assert network.get_buffer("1.num_batches_tracked") is net[1].num_batches_tracked
        assert network.get_submodule("1").momentum == 0.2
        check_equal(net, network, batch(5, *MAPS))
    assert network.get_parameter("7.bias") is net[7].bias
    assert {name for name, _ in network.named_parameters()} == {
        name.replace("1.act", "1_act" if through == "fx" else "1.act") for name, _ in net.named_parameters()
    }


def test_export_takes_what_fx_cannot_and_is_equal():
    torch.manual_seed(0)
    net = nets.Branching().eval()
    network = trace(net, MAPS)
    assert network.meta["entry"].door == "export"
    for count in (1, 2, 5):
        assert torch.equal(network.eval()(batch(count, *MAPS)), net(batch(count, *MAPS)))
    check_equal(net, network, batch(4, *MAPS))
    loaded = from_table(to_table(network))
    assert [node.name for node in loaded.graph.nodes] == [node.name for node in network.graph.nodes]
    assert isinstance(network.get_submodule("norm"), nn.BatchNorm2d)
    assert isinstance(network.get_submodule("stem"), nn.Conv2d)
    assert network.get_parameter("stem.weight") is net.stem.weight


def test_numbers_that_follow_from_the_sample_shape_are_guarded():
    network = trace(nets.Branching(), MAPS)
    assert any(isinstance(module, SampleShape) for module in network.modules())
    assert "(3, 9, 9)" in network.meta["entry"].assumed[0]
    with pytest.raises(ValueError, match=r"samples of shape \(3, 8, 8\) were given; .* made for \(3, 9, 9\)"):
        network(batch(2, 3, 8, 8))


@pytest.mark.parametrize("scale", [True, False])
def test_drop_paths_of_others_draw_as_they_did(scale):
    net = nn.Sequential(nn.Linear(4, 4), nets.DropPath(0.5, scale))
    network = trace(net, (4,))
    assert network.meta["entry"].assumed == []
    check_equal(net, network, batch(16, 4))
    assert not torch.equal(step(network, batch(16, 4))[0], network.eval()(batch(16, 4)))


def test_recurrent_layers_come_in_whole_and_come_back(tmp_path):
    torch.manual_seed(0)
    net = nets.Recurrent().eval()
    network = trace(net, (5, 6))
    assert isinstance(network.get_submodule("lstm"), nn.LSTM)
    check_equal(net, network, batch(3, 5, 6))


def test_transformers_of_torch_come_in():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    network = trace(net, (5, 6))
    assert sum(isinstance(module, nn.MultiheadAttention) for module in network.modules()) == 2
    torch.testing.assert_close(network(batch(3, 5, 6)), net(batch(3, 5, 6)), rtol=1e-5, atol=1e-6)


def test_several_inputs_are_one_tuple_and_an_output_is_picked():
    torch.manual_seed(0)
    net = nets.Two().eval()
    network = trace(net, ((7,), (4,)), output="logits")
    inputs = (torch.randint(11, (3, 7)), batch(3, 4))
    assert torch.equal(network(inputs), net(*inputs)["logits"])
    assert torch.equal(trace(net, ((7,), (4,)), output="hidden")(inputs), net(*inputs)["hidden"])
    with pytest.raises(UnsupportedModelError, match=r"returns a dict .* choose it with model.output, logits or hidden"):
        trace(net, ((7,), (4,)))


def test_the_module_stays_as_it_was():
    net = nets.Caching().eval()
    before = dict(vars(net))
    first = trace(net, (4,))
    assert vars(net) == before
    assert net.kept == {}
    check_equal(net, first, batch(3, 4))
    net.eval()(batch(2, 4))  # fills it, with a tensor that no copy may be made of
    assert torch.equal(trace(net, (4,)).eval()(batch(3, 4)), net(batch(3, 4)))


def test_what_training_alone_does_is_refused_or_allowed_by_name():
    net = nets.OnlyInTraining()
    with pytest.raises(UnsupportedModelError, match=r"training mode forward does .*lossy_training"):
        trace(net, (4,))
    network = trace(net, (4,), lossy_training=True)
    assert "lossy_training" in network.meta["entry"].assumed[0]
    assert torch.equal(network(batch(2, 4)), net.eval()(batch(2, 4)))


def test_outputs_of_training_alone_are_left_out_and_said():
    network = trace(nets.Auxiliary(), (4,))
    assert network.meta["entry"].assumed == ["outputs that forward gives in training mode alone are left out"]


def test_an_operation_without_a_row_is_named():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x if x.shape[1] > 2 else -x).real

    with pytest.raises(UnsupportedModelError, match=r"it calls aten\.fft_rfft\.default, for which .* no function"):
        trace(Fourier(), (4,))


def broken(change) -> tuple[nn.Module, torch.fx.GraphModule]:
    """A net and a graph of its own that is changed, on the same tensors."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    network = trace(net)
    change(network)
    return net, network


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda network: setattr(network.get_submodule("1"), "momentum", 0.5), "the buffers"),
        (lambda network: setattr(network.get_submodule("2"), "p", 0.4), "the outputs"),
        (lambda network: network.add_submodule("2", nn.Identity()), "the outputs"),
    ],
)
def test_the_check_of_training_moves(change, what):
    net, network = broken(change)
    assert check_eval(net, network, [batch(6, 4)]) == []
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with pytest.raises(UnsupportedModelError, match=what):
        check_training(net, network, batch(6, 4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_the_check_of_gradients_moves():
    class Stopped(nn.Linear):
        def forward(self, x):
            return super().forward(x.detach()) + (x - x.detach())

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    other = nn.Sequential(net[0], Stopped(4, 4))
    other[1].weight, other[1].bias = net[1].weight, net[1].bias
    with pytest.raises(UnsupportedModelError, match="the gradients"):
        check_training(net, other, batch(6, 4))


def test_the_check_of_outputs_moves():
    net, network = broken(lambda network: setattr(network.get_submodule("1"), "eps", 1e-2))
    with pytest.raises(UnsupportedModelError, match="the outputs differ"):
        check_eval(net, network, [batch(6, 4)])
