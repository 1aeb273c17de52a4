"""A traced network computes what the module does, in eval and in train mode, and leaves the module as it was."""

from collections import OrderedDict

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.utils import parametrizations

from compresskit.errors import UnsupportedModelError
from compresskit.graph.layers.stochastic_depth import StochasticDepth
from compresskit.graph.layers.windows import WindowAttention
from compresskit.graph.trace import trace
from tests.graph.nets import INPUTS, Plain, Residual, batch, make


class Dropping(nn.Module):
    def __init__(self, call, always: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.call, self.always = call, always

    def forward(self, x):
        return self.call(self.fc(x), p=0.5, training=self.training or self.always)


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(6, 6), inner

    def forward(self, x):
        return self.inner(self.stem(x))


def function(forward) -> nn.Module:
    """A module with a forward written for one test."""
    return type("Given", (nn.Module,), {"forward": forward})()


@pytest.mark.parametrize("kind", INPUTS)
def test_outputs_are_those_of_the_module(kind):
    net = make(kind)
    assert torch.equal(trace(net)(batch(kind)), net(batch(kind)))


def test_scope_is_the_submodule_whose_forward_made_the_call():
    nodes = {node.name: node for node in trace(make(Residual)).graph.nodes}
    assert nodes["add"].meta["scope"] == "block1"
    assert nodes["block1_conv1"].meta["scope"] == "block1"
    assert nodes["stem"].meta["scope"] == ""
    assert nodes["flatten"].meta["scope"] == ""


def test_mode_of_every_submodule_is_kept():
    net = make(Residual).train()
    net.block1.norm1.eval()
    network = trace(net)
    assert net.training
    assert network.training
    assert not net.block1.norm1.training
    assert net.block1.norm2.training
    assert not trace(make(Plain)).training


@pytest.mark.parametrize(
    ("call", "kind", "shape"),
    [
        (F.dropout, nn.Dropout, (6,)),
        (F.dropout1d, nn.Dropout1d, (3, 6)),
        (F.dropout2d, nn.Dropout2d, (3, 2, 6)),
        (F.dropout3d, nn.Dropout3d, (3, 2, 2, 6)),
        (F.alpha_dropout, nn.AlphaDropout, (6,)),
        (F.feature_alpha_dropout, nn.FeatureAlphaDropout, (3, 2, 2, 6)),
    ],
)
def test_functional_dropout_becomes_a_module(call, kind, shape):
    net = Dropping(call)
    network = trace(net)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    assert [type(module) for module in network.modules() if isinstance(module, kind)] == [kind]
    assert torch.equal(network.eval()(x), net.eval()(x))
    torch.manual_seed(3)
    expected = net.train()(x)
    torch.manual_seed(3)
    assert torch.equal(network.train()(x), expected)
    assert not torch.equal(expected, net.eval()(x))


def test_dropout_that_eval_mode_does_not_stop_stays_as_it_is():
    network = trace(Dropping(F.dropout, always=True))
    assert [node.target for node in network.graph.nodes if node.op == "call_function"] == [F.dropout]


def test_new_modules_are_named_after_the_place_of_the_call():
    assert "inner.dropout" in dict(trace(Nested(Dropping(F.dropout))).named_modules())


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.4, 1.0])
def test_stochastic_depth_draws_as_torchvision_does(mode, p):
    from torchvision.ops import StochasticDepth as Original

    net = Nested(Original(p, mode))
    network = trace(net)
    assert isinstance(network.get_submodule("inner"), StochasticDepth)  # the name that it had
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.eval()(x), net.eval()(x))
    torch.manual_seed(1)
    expected = net.train()(x)
    torch.manual_seed(1)
    assert torch.equal(network.train()(x), expected)


def test_layers_of_our_own_stay_whole_when_traced_again():
    network = trace(trace(Nested(StochasticDepth(0.5, "row"))))
    assert isinstance(network.get_submodule("inner"), StochasticDepth)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("shift", "size"), [((0, 0), (6, 6)), ((2, 2), (7, 10)), ((2, 2), (4, 9)), ((2, 2), (4, 4)), ((1, 2), (12, 5))]
)
def test_window_attention_equals_torchvision(version, shift, size):
    from torchvision.models import swin_transformer

    kind = swin_transformer.ShiftedWindowAttention if version == 1 else swin_transformer.ShiftedWindowAttentionV2
    torch.manual_seed(0)
    net = kind(8, [4, 4], list(shift), 2, attention_dropout=0.3, dropout=0.3)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    network = trace(net)
    assert any(isinstance(module, WindowAttention) for module in network.modules())
    x = torch.randn(2, *size, 8)
    assert torch.equal(network.eval()(x), net.eval()(x))
    torch.manual_seed(1)
    expected = net.train()(x)
    torch.manual_seed(1)
    assert torch.equal(network.train()(x), expected)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_merging_patches_equals_torchvision(size):
    from torchvision.models.swin_transformer import PatchMerging

    net = PatchMerging(3).eval()
    x = torch.randn(2, *size, 3)
    assert torch.equal(trace(net)(x), net(x))


def test_arguments_after_the_batch_keep_their_defaults():
    network = trace(function(lambda self, x, scale=3, mask=None: x * scale if mask is None else x))
    assert [node.target for node in network.graph.nodes if node.op == "placeholder"] == ["x"]
    assert torch.equal(network(torch.ones(2)), torch.full((2,), 3.0))


def test_half_precision_weights_become_float_in_a_copy():
    net = nn.Sequential(nn.Linear(3, 2)).to(torch.bfloat16)
    assert next(trace(net).parameters()).dtype == torch.float32
    assert net[0].weight.dtype == torch.bfloat16
    assert next(trace(make(Plain)).parameters()).dtype == torch.float64


def test_a_traced_network_can_be_traced_again():
    network = trace(make(Residual))
    again = trace(network)
    assert isinstance(again, fx.GraphModule)
    assert torch.equal(again(batch(Residual)), network(batch(Residual)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        if x.sum() > 0:
            return self.fc(x)
        return x


def test_the_submodule_and_the_line_that_stop_the_trace_are_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Branching()))
    with pytest.raises(
        UnsupportedModelError, match=r"submodule 1\.0.*test_trace\.py:\d+ `if x\.sum\(\) > 0:`.*control flow"
    ):
        trace(net)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: {"out": x}, "returns a dict"),
        (lambda self, x: (x, x), "returns a tuple"),
        (lambda self, x, y: x + y, "missing 1 required positional argument: 'y'"),
        (lambda self, x: torch.fft.fft(x), r"node fft_fft: asks for '\S*fft_fft', .* allowed functions"),
        (lambda self, x: x.cuda(), "asks for 'cuda', which is not in the list of allowed methods of tensors"),
        (lambda self, x: x + x.grad, "asks for 'grad', which is not in the list of allowed attributes"),
        (lambda self, x: x.to(torch.device("cpu")), "a checkpoint cannot hold its argument device"),
    ],
)
def test_what_no_checkpoint_could_hold_is_refused_before_any_work(forward, message):
    with pytest.raises(UnsupportedModelError, match=message):
        trace(function(forward))


def test_a_layer_with_a_hook_is_refused():
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(UnsupportedModelError, match="^0: it has a forward hook"):
        trace(net)


@pytest.mark.parametrize("shape", [None, (4,)])
@pytest.mark.parametrize(
    ("norm", "call"),
    [
        (parametrizations.weight_norm, 'parametrize.remove_parametrizations(layer, "weight")'),
        (parametrizations.spectral_norm, 'parametrize.remove_parametrizations(layer, "weight")'),
        (utils.spectral_norm, "remove_spectral_norm(layer)"),
    ],
)
def test_weights_that_are_computed_in_forward_are_refused_with_the_way_out(norm, call, shape):
    net = nn.Sequential(norm(nn.Linear(4, 4)), nn.ReLU(), norm(nn.Linear(4, 2)))
    with pytest.raises(UnsupportedModelError) as told:
        trace(net, shape)
    assert str(told.value).endswith(f"once they are loaded, call torch.nn.utils.{call} for 0, 2")
    for layer in (net[0], net[2]):
        eval(f"utils.{call}", {"utils": utils, "layer": layer})
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(trace(net, shape)(inputs), net(inputs))


@pytest.mark.parametrize("name", ["self", "class", "None"])
def test_names_that_are_words_of_python_are_refused(name):
    with pytest.raises(UnsupportedModelError, match=rf"^{name}: '{name}' is a word of Python; give it another name"):
        trace(nn.Sequential(OrderedDict({name: nn.Linear(3, 2)})))
    nested = nn.Sequential(OrderedDict({"block": nn.Sequential(OrderedDict({name: nn.Linear(3, 2)}))}))
    if name == "self":
        assert trace(nested)(torch.ones(1, 3)).shape == (1, 2)
    else:
        with pytest.raises(UnsupportedModelError, match=rf"^block\.{name}: "):
            trace(nested)


@pytest.mark.parametrize("name", ["file", "input", "output", "name", "print", "torch", "a-b", "0", "weight", "getattr"])
def test_odd_names_trace_and_compute_the_same(name):
    module, x = nn.Sequential(OrderedDict({name: nn.Linear(3, 2), "last": nn.ReLU()})), torch.randn(4, 3)
    assert torch.equal(trace(module)(x), module(x))


class Written(nn.Module):
    """Writes in place, through a view and by another name."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.fc, self.act, self._forward = nn.Linear(6, 6), nn.ReLU(inplace=True), forward

    def forward(self, x):
        return self._forward(self, x)


def of_a_view(net, x):
    x = net.fc(x)
    half = x[:, :3]
    half *= 3
    return x


def under_another_name(net, x):
    x = net.fc(x)
    kept = x
    x += 1
    return x * kept


def of_an_activation(net, x):
    x = net.fc(x)
    y = net.act(x)
    y -= 1
    return x


def of_its_own(net, x):
    y = net.fc(x)
    y += x
    y /= 2
    size = x.shape[1]
    size -= 3
    return torch.cat([y[:, :size], x], 1)


@pytest.mark.parametrize("forward", [of_a_view, under_another_name, of_an_activation, of_its_own])
def test_what_is_written_in_place_is_seen_by_all_that_read_it(forward):
    net, x = Written(forward).eval(), batch_of_numbers()
    network = trace(net, (6,))
    assert torch.equal(network(x.clone()), net(x.clone()))


def test_updates_that_nothing_else_sees_need_no_comparison():
    def forward(net, x):
        y = net.fc(x)
        y += x
        y *= 2
        return y

    entry = trace(Written(forward), (6,)).meta["entry"]
    assert (entry.door, entry.assumed) == ("fx", [])


def test_first_arguments_by_their_names():
    def forward(net, x):
        y = net.fc(input=torch.flatten(input=x, start_dim=1))
        return F.linear(torch.cat(tensors=[y, y], dim=1), weight=net.fc.weight.repeat(1, 2))

    net, x = Written(forward), batch_of_numbers()
    network = trace(net, (6,))
    assert torch.equal(network(x), net(x))
    assert all(node.args for node in network.graph.nodes if node.op == "call_function")


def batch_of_numbers() -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
