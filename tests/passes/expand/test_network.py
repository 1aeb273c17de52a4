"""Expanded networks: which layers, with which factors, from which weights; and back to the compact net."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, shufflenet_v2_x0_5

from compresskit.errors import RecipeError
from compresskit.graph.trace import trace
from compresskit.models.plain.smallnet import SmallNet
from compresskit.passes.expand.network import (
    contract,
    contract_model,
    expand,
    expand_model,
    expanded_layers,
    set_factors,
)
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.strategies import STRATEGIES, LayerShape
from tests.graph.nets import make

PLAIN = [name for name in STRATEGIES if not STRATEGIES[name].norms]
STRATEGIES_AND_SUMS = [*PLAIN, "cl+fc", "ck+fc", "ck+cl", "acnet+fc"]


class Mixed(nn.Module):
    """Grouped and depthwise layers, kernels of all sorts, functions between, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, (5, 7), padding=(2, 3), groups=2, dilation=1)
        self.norm2 = nn.BatchNorm2d(12)
        self.shortcut = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 6)
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.depthwise(x)
        x = torch.relu(self.norm2(self.grouped(x)) + self.shortcut(x))
        return self.head(torch.relu(self.fc(x.mean((2, 3)))))


@pytest.fixture
def network():
    return trace(make(Mixed)).double()


def images(count=4, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("strategy", STRATEGIES_AND_SUMS)
def test_contraction_gives_the_compact_architecture_and_the_same_outputs(network, strategy):
    found = expand(network, Expand(strategy=strategy, rate=3))
    for mode in ("online", "sequential"):
        set_factors(found.network, mode=mode)
        compact = contract(found.network)
        expected = found.network(images())
        assert (compact(images()) - expected).abs().max() <= 1e-12 * expected.abs().max()
        single = copy.deepcopy(found.network).float()
        value, expected = contract(single)(images().float()), single(images().float())
        assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()
    state = {name: tensor.shape for name, tensor in compact.state_dict().items()}
    assert state == {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert [(n.name, n.target) for n in compact.graph.nodes] == [(n.name, n.target) for n in network.graph.nodes]
    assert list(map(str, compact.children())) == list(map(str, network.children()))  # every option of every layer
    assert not expanded_layers(compact)


@pytest.mark.parametrize("strategy", STRATEGIES_AND_SUMS)
def test_gradients_of_both_ways_are_equal_in_training(network, strategy):
    online = expand(network, Expand(strategy=strategy, rate=2)).network.train()
    sequential = copy.deepcopy(online)
    set_factors(sequential, mode="sequential")
    for net in (online, sequential):
        net(images()).square().sum().backward()
    for ours, theirs in zip(online.parameters(), sequential.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)  # through three batch norms
    for ours, theirs in zip(online.buffers(), sequential.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("strategy", ["cl", "fc", "acnet", "cl+fc"])
def test_from_a_checkpoint_the_function_is_that_of_the_net(network, strategy):
    before = copy.deepcopy(network.state_dict())
    found = expand(network, Expand(strategy=strategy, init="from_checkpoint"))
    expected = network(images())
    assert (found.network(images()) - expected).abs().max() <= 1e-9 * expected.abs().max()  # pseudo-inverses
    assert all(row.residual < 1e-8 for row in found.layers)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    weights = [p for layer in expanded_layers(found.network).values() for p in layer.parameters() if p.ndim > 1]
    assert all(weight.any() for weight in weights)  # else some factor would never learn


@pytest.mark.parametrize(
    ("strategy", "layer"), [("cl", nn.Conv2d(48, 48, 3)), ("fc", nn.Linear(64, 64))], ids=["cl", "fc"]
)
def test_square_factors_start_as_precisely_as_float32_allows(strategy, layer):
    """Square matrices that are drawn have conditions of thousands; seeds 0 to 5 lost up to three digits."""
    net = trace(nn.Sequential(layer))
    x = torch.randn(2, 48, 8, 8) if strategy == "cl" else torch.randn(20, 64)
    for seed in range(6):
        found = expand(net, Expand(strategy=strategy, rate=1, init="from_checkpoint"), seed)
        assert (found.network(x) - net(x)).abs().max() < 5e-6 * net(x).abs().max()
        weight = found.network.get_submodule("0").contracted()[0].detach()
        error = float((weight - layer.weight.detach()).norm() / layer.weight.detach().norm())
        assert found.layers[0].residual == pytest.approx(error)  # of the factors as they are, not as they were solved


def test_says_how_far_it_is(network):
    told = []
    expand(network, Expand(layers=("@conv",), init="from_checkpoint"), progress=lambda *place: told.append(place))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_rate_that_is_too_low_for_a_trained_kernel_is_told_what_is_enough(network):
    with pytest.raises(RecipeError, match=r"expand: grouped: no factors found .*; use a rate of 1 or more"):
        expand(network, Expand(layers=("grouped",), rate=0.5, init="from_checkpoint"))


def test_the_next_strategy_has_its_turn_where_no_factors_are_found():
    net = trace(nn.Sequential(nn.Conv2d(3, 8, 7)))
    found = expand(net, Expand(strategy="ck+cl", init="from_checkpoint"))
    assert [row.strategy for row in found.layers] == ["cl"]
    torch.testing.assert_close(
        found.network(images()[:, :3].float()), net(images()[:, :3].float()), rtol=1e-4, atol=1e-5
    )


def test_a_weight_that_the_network_reads_itself_is_left_alone():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.own = nn.Linear(6, 4), nn.Linear(6, 6)

        def forward(self, x):
            return nn.functional.linear(self.tied(self.own(input=x)), self.tied.weight.t())

    net = trace(Tied())
    found = expand(net, Expand(strategy="fc"))
    assert [row.name for row in found.layers] == ["own"]
    assert found.skipped == {"tied": "its weight is used elsewhere, too"}
    assert found.network(torch.zeros(2, 6)).shape == (2, 6)


def test_kernels_that_no_small_factors_give_are_left_and_listed():
    net = trace(SmallNet(kernel=7).build((3, 32, 32), 10)).double()
    found = expand(net, Expand(strategy="ck", init="from_checkpoint"))
    assert [row.name for row in found.layers] == ["conv2", "conv3"]
    assert "no factors found whose product is its trained kernel (relative error" in found.skipped["conv1"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(found.network.eval()(x), net.eval()(x), rtol=1e-9, atol=1e-9)


def test_factors_have_the_documents_widths(network):
    rows = {row.name: row for row in expand(network, Expand(strategy="ck+cl+fc", rate=2, factors=3)).layers}
    assert {name: row.strategy for name, row in rows.items()} == {
        "stem": "ck", "depthwise": "cl", "grouped": "ck", "shortcut": "cl", "fc": "fc", "head": "fc"
    }  # fmt: skip
    assert rows["stem"].factors == (((3, 3, 3, 3), (8, 3, 3, 3)),)  # an image's channels are not multiplied
    assert rows["depthwise"].factors == (((16, 1, 1, 1), (16, 2, 3, 3), (8, 2, 1, 1)),)
    assert rows["grouped"].factors == (((16, 4, 3, 3), (24, 8, 3, 3), (12, 12, 1, 3)),)
    assert rows["fc"].factors == (((24, 12), (12, 24), (6, 12)),)
    assert rows["fc"].parameters == (78, 24 * 12 + 24 + 12 * 24 + 12 + 6 * 12 + 6)
    assert rows["head"].parameters == (24, 12 * 6 + 8 * 12 + 4 * 8)  # no bias, no biases


def test_rates_by_layer(network):
    options = Expand(strategy="cl", layers=("@conv",), rate={"@conv": 2.0, "depthwise": 0.5, "re:s.*": 1.0})
    rows = {row.name: row.factors[0] for row in expand(network, options).layers}
    assert rows["stem"] == ((3, 3, 1, 1), (8, 3, 5, 5), (8, 8, 1, 1))
    assert rows["depthwise"][1] == (8, 1, 3, 3)  # half a channel is one
    assert rows["grouped"][0] == (16, 4, 1, 1)
    found = expand(network, Expand(strategy="cl", rate={"stem": 2.0}))
    assert [row.name for row in found.layers] == ["stem"]
    assert found.skipped["grouped"] == "no selector of `rate` names it"


def test_factors_by_layer(network):
    found = expand(network, Expand(strategy="cl+fc", rate=2, factors={"@linear": 2, "fc": 3, "stem": 3}))
    rows = {row.name: row.factors[0] for row in found.layers}
    assert [len(rows[name]) for name in ("fc", "head")] == [3, 2]  # of several selectors the last one counts
    assert rows["fc"] == ((24, 12), (12, 24), (6, 12))
    found = expand(network, Expand(strategy="cl+fc", factors={"fc": 3}))
    assert [row.name for row in found.layers] == ["stem", "depthwise", "grouped", "shortcut", "fc"]
    assert found.skipped == {"head": "no selector of `factors` names it"}
    found = expand(network, Expand(strategy="fc", layers=("re:(?!head).*",)))
    assert [row.name for row in found.layers] == ["fc"]


def test_the_first_factor_of_an_images_layer_is_as_wide_as_asked_for(network):
    for strategy, taps in (("cl", 1), ("ck", 3)):
        keeps, expands = (
            expand(network, Expand(strategy=strategy, rate=2, first=first)).layers for first in ("keep", "expand")
        )
        assert keeps[0].factors[0][0] == (3, 3, taps, taps)
        assert expands[0].factors[0][0] == (6, 3, taps, taps)
        assert [row.factors for row in keeps[1:]] == [row.factors for row in expands[1:]]


def test_a_wide_first_factor_lets_ck_start_from_a_trained_layer_of_images():
    net = trace(SmallNet(kernel=5).build((3, 32, 32), 10)).double()
    found = expand(net, Expand(strategy="ck", init="from_checkpoint", first="expand", rate=4))
    assert [row.name for row in found.layers] == ["conv1", "conv2", "conv3"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(found.network.eval()(x), net.eval()(x), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_expanded_is_listed(network):
    found = expand(network, Expand(strategy="ck"))
    assert [row.name for row in found.layers] == ["stem", "grouped"]
    assert found.skipped == {
        "depthwise": "ck takes odd kernels larger than 3, and its kernel is 3x3; use cl",
        "shortcut": "ck takes odd kernels larger than 3, and its kernel is 1x1; use cl",
        "fc": "ck is not for linear layers",
        "head": "ck is not for linear layers",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "ck", "layers": ("depthwise",)}, "expand: depthwise: ck takes odd kernels larger than 3"),
        ({"strategy": "fc", "layers": ("stem",)}, "expand: stem: fc is not for convolutions"),
        ({"strategy": "acnet", "layers": ("shortcut",)}, "expand: shortcut: acnet takes kernels with several taps"),
        ({"strategy": "ck", "layers": ("@linear",)}, "expand: no layer can be expanded by ck (fc: ck is not for"),
        ({"strategy": "fc", "layers": ("head",), "factors": {"fc": 3}}, "expand: head: no selector of `factors` names"),
        ({"strategy": "fc", "factors": {"fx": 3}}, "expand.factors: layer selector 'fx': no convolution or linear"),
        ({"layers": ("stam",)}, "'stam': no convolution or linear layer is named so; did you mean 'stem'"),
    ],
)
def test_refusals(network, options, message):
    with pytest.raises(RecipeError) as refusal:
        expand(network, Expand(**options))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "cm"}, "strategy: 'cm' was given; allowed: cl, ck, fc, acnet, acnet-bn, or some joined by +"),
        ({"strategy": "cl+cl"}, "strategy: 'cl+cl' names one twice; give each once"),
        ({"nonlinear": True, "mode": "online"}, "which `nonlinear` parts; set mode: sequential"),
        ({"nonlinear": True, "init": "from_checkpoint"}, "keeps the function of the net"),
        ({"strategy": "acnet-bn", "mode": "online"}, "acnet-bn has batch norms, which train from scratch"),
        ({"strategy": "acnet-bn+fc", "nonlinear": True}, "acnet-bn has batch norms, which train from scratch"),
        ({"strategy": "acnet-bn", "init": "from_checkpoint"}, "set init: standard, or use acnet"),
        ({"strategy": "acnet-bn", "init": "nonlinear"}, "set init: standard, or use acnet"),
        ({"strategy": "acnet-bn", "rate": "auto"}, "give rates for mode: sequential"),
    ],
)
def test_options_that_contradict(options, message):
    with pytest.raises(ValueError, match=".") as refusal:
        Expand(**options)
    assert message in str(refusal.value)


def test_a_shared_weight_is_left_alone():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.again = self.first
            self.second = nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.own = nn.Linear(6, 6)

        def forward(self, x):
            return self.own(self.second(self.again(self.first(x))))

    found = expand(trace(Tied()), Expand(strategy="fc"))
    assert [row.name for row in found.layers] == ["own"]
    assert set(found.skipped.values()) == {"its weight is used elsewhere, too"}


def trained_with_norms(network, seed=3):
    """Expanded by acnet-bn, with statistics of batches and with scales and shifts that are not the first ones."""
    net = expand(network, Expand(strategy="acnet-bn")).network.train()
    torch.manual_seed(seed)
    for layer in expanded_layers(net).values():
        for norm in layer.branch_norms:
            nn.init.uniform_(norm.weight, -1, 2)
            nn.init.normal_(norm.bias)
    for _ in range(5):
        net(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    return net.eval()


def test_branch_norms_take_the_place_of_the_one_behind_and_fold_away(network):
    net = trained_with_norms(network)
    assert list(expanded_layers(net)) == ["stem", "depthwise", "grouped"]
    assert isinstance(net.norm, nn.Identity)  # behind stem
    assert isinstance(net.norm2, nn.Identity)  # behind grouped; depthwise has none
    assert isinstance(network.norm, nn.BatchNorm2d)
    x, compact = images(), contract(net)
    assert (compact(x) - net(x)).abs().max() <= 1e-12 * net(x).abs().max()
    assert not expanded_layers(compact)
    for name in ("stem", "depthwise", "grouped"):
        own, before = compact.get_submodule(name), network.get_submodule(name)
        assert own.weight.shape == before.weight.shape
        assert own.bias is not None
    single = copy.deepcopy(net).float()
    expected = single(x.float())
    assert (contract(single)(x.float()) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_branch_norms_train_with_statistics_of_the_batch(network):
    net = expand(network, Expand(strategy="acnet-bn", layers=("stem",))).network.train()
    x = images()
    layer, padded = net.stem, nn.functional.pad(images(), (2, 2, 2, 2))
    branches = [
        nn.functional.conv2d(padded[:, :, top : 20 - top, left : 20 - left], factor.weight, None, stride=2)
        for factor, (top, left) in zip(layer.factors, [(0, 0), (2, 0), (0, 2)], strict=True)
    ]
    expected = 0
    for branch in branches:
        mean, variance = branch.mean((0, 2, 3), keepdim=True), branch.var((0, 2, 3), keepdim=True, unbiased=False)
        expected = expected + (branch - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.branch_norms.parameters())


def test_a_norm_that_others_read_stays(network):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.read, self.behind = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.norm(self.one(x)) + self.norm(self.two(x))
            y = self.read(x)
            return self.behind(y) + y

    found = expand(trace(Twice()), Expand(strategy="acnet-bn")).network
    assert len(expanded_layers(found)) == 3
    assert isinstance(found.norm, nn.BatchNorm2d)
    assert isinstance(found.behind, nn.BatchNorm2d)


def test_contracting_a_net_that_has_nothing_to_contract_or_no_product_is_refused(network):
    with pytest.raises(RecipeError, match="contract: this net has no expanded layers"):
        contract(network)
    nonlinear = expand(network, Expand(strategy="fc", nonlinear=True)).network
    with pytest.raises(RecipeError, match="contract: fc was trained with nonlinear factors"):
        contract(nonlinear)


def test_the_seed_draws_the_factors_and_the_callers_random_state_stays(network):
    state = torch.random.get_rng_state()
    one, same, other = (expand(network, Expand(strategy="cl"), seed).network.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.factors.0.weight"], other["stem.factors.0.weight"])
    assert torch.equal(one["norm.weight"], network.state_dict()["norm.weight"])  # layers that are not expanded stay


@pytest.mark.parametrize(("build", "count"), [(mobilenet_v2, 18), (shufflenet_v2_x0_5, 20)])
def test_the_3x3_layers_of_mobile_nets(build, count):
    torch.manual_seed(0)
    net = trace(build(num_classes=10))
    found = expand(net, Expand(strategy="cl", layers=("@conv3x3",), rate=2))
    assert len(found.layers) == count
    assert all(row.weight_shape[2:] == (3, 3) for row in found.layers)
    x = torch.randn(2, 3, 64, 64)
    found.network.eval()
    expected = found.network(x)
    assert (contract(found.network)(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_from_a_notebook():
    net = SmallNet(kernel=3).build((1, 16, 16), 10)
    wide, rows = expand_model(net, strategy="cl+fc", rate=2)
    assert [row.name for row in rows] == ["conv1", "conv2", "conv3", "fc1", "head"]
    compact = contract_model(wide)
    assert [name for name, _ in compact.named_parameters()] == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize(("inputs", "groups", "kept"), [(1, 1, True), (3, 1, True), (3, 3, True), (4, 4, False)])
def test_an_image_is_told_by_the_networks_input_not_by_a_groups(inputs, groups, kept):
    shape = LayerShape(inputs // groups, 8, groups, (3, 3), keeps_image=True)
    ((first, *_),) = STRATEGIES["cl"].branches(shape, 2.0)
    assert (first[0] == inputs) == kept
    assert STRATEGIES["cl"].branches(replace(shape, keeps_image=False), 2.0)[0][0][0] == 2 * inputs
