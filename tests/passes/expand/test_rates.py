"""What products cost in a step, against torch's own counter, and the rates that stay below a limit."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.models.images.resnet import ResNet
from compresskit.passes.expand.network import expand
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.rates import RATES, auto_rates, product_macs, rate_below
from compresskit.passes.expand.sites import layer_shape

IMAGE = (3, 16, 16)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trace(ResNet(width=0.25).build(IMAGE, 10))


def macs(network, batch: int) -> dict[str, int]:
    return {layer.name: batch * layer.macs for layer in count(network, IMAGE).layers}


def forward_macs(network) -> int:
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, *IMAGE))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("strategy", ["cl", "ck+cl", "acnet"])
def test_products_cost_what_torch_counts(network, strategy):
    options = Expand(strategy=strategy, rate=1.75, layers=("@conv3x3",))  # without biases
    found = expand(network, options)
    counted = forward_macs(found.network) - forward_macs(network)
    assert sum(layer.product_macs for layer in found.layers) == counted
    assert counted == sum(product_macs(layer_shape(network, row.name, options), options, 1.75) for row in found.layers)


def test_a_training_step_costs_three_times_its_forward_pass():
    net = trace(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False)))
    found = expand(net, Expand(rate=2)).network
    totals = []
    for one in (net, found):
        x = torch.zeros(2, 4, 8, 8, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            one(x).sum().backward()
        totals.append(counter.get_total_flops() // 2)
    products = sum(row.product_macs for row in expand(net, Expand(rate=2)).layers)
    assert totals[1] - totals[0] == 3 * products
    assert totals[0] == 3 * 2 * count(net, (4, 8, 8)).macs


@pytest.mark.parametrize("limit", [1.2, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("batch", [16, 256])
def test_auto_stays_below_the_limit_and_leaves_no_layer_that_would_fit(network, limit, batch):
    options = Expand(strategy="cl", rate="auto", limit=limit, layers=("@conv3x3",))
    budget = (limit - 1) * sum(macs(network, batch).values())
    rates, left = auto_rates(network, options, macs(network, batch))
    found = expand(network, replace(options, rate=rates))
    spent = sum(row.product_macs for row in found.layers)
    assert spent <= budget
    assert {row.name: row.rate for row in found.layers} == rates
    assert set(rates.values()) <= set(RATES)
    assert set(left.values()) <= {f"a rate of 1 would cost more than expand.limit: {limit:g}"}
    next_steps = []
    for name, rate in rates.items():
        if rate < max(RATES):
            shape = layer_shape(network, name, options)
            next_steps.append(product_macs(shape, options, rate + 0.25) - product_macs(shape, options, rate))
    for name in left:
        next_steps.append(product_macs(layer_shape(network, name, options), options, 1.0))
    equal = Counter(tuple(network.get_submodule(name).weight.shape) for name in [*rates, *left])
    assert not next_steps or spent + max(equal.values()) * max(next_steps) > budget  # equal layers rise together


def test_a_generous_limit_gives_the_documents_rate_and_a_tight_one_nothing(network):
    wide = Expand(strategy="cl", rate="auto", limit=100.0, layers=("@conv3x3",))
    assert set(auto_rates(network, wide, macs(network, 256))[0].values()) == {4.0}
    rates, left = auto_rates(network, replace(wide, limit=1.0001), macs(network, 16))
    assert list(rates) == ["stem.conv"]  # three channels: next to nothing
    assert len(left) == 16


def test_what_no_strategy_fits_is_left_with_its_reason(network):
    rates, left = auto_rates(network, Expand(strategy="cl", rate="auto"), macs(network, 256))
    assert "head" not in rates
    assert left["head"] == "cl is not for linear layers"


def test_layers_of_large_maps_get_the_higher_rates(network):
    options = Expand(strategy="cl", rate="auto", layers=("@conv3x3",))
    rates, _ = auto_rates(network, options, macs(network, 64))
    assert rates["stage1.block1.body.part1.conv"] == 4.0
    assert rates["stage3.block2.body.part2.conv"] < 4.0


@pytest.mark.parametrize("budget", [1e6, 1e7, 1e8])
def test_the_rate_below_a_budget_is_the_largest(network, budget):
    options = Expand(strategy="cl")
    names = ["stage1.block1.body.part1.conv", "stage3.block2.body.part2.conv"]
    rate = rate_below(network, options, names, budget)

    def total(r):
        return sum(product_macs(layer_shape(network, name, options), options, r) for name in names)

    assert rate is not None
    assert total(rate) <= budget < total(rate + 0.05)
    assert rate_below(network, options, names, 0.0) is None


def test_auto_needs_a_training_and_products(network):
    with pytest.raises(RecipeError, match="rate: auto weighs the steps of a training"):
        expand(network, Expand(rate="auto"))
    with pytest.raises(ValueError, match="rate: auto weighs the products of mode: online"):
        Expand(rate="auto", mode="sequential")
    with pytest.raises(ValueError, match="limit: 1 was given; it must be greater than 1"):
        Expand(limit=1.0)
