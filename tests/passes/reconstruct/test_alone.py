"""What one site alone costs, run from its layer on, against whole networks that have its layers."""

import copy

import pytest
import torch
from torch import nn

from compresskit.graph.trace import trace
from compresskit.passes.held_out import OfVariance, loss_of
from compresskit.passes.moments import gather_from
from compresskit.passes.reconstruct.alone import losses_alone
from compresskit.passes.reconstruct.chaining import Draft, masked
from compresskit.passes.reconstruct.options import Reconstruct
from compresskit.passes.reconstruct.readers import plan
from compresskit.passes.reconstruct.refitted import Layer, with_layers
from compresskit.passes.reconstruct.selection import Rule, choose
from tests.graph import nets
from tests.graph.nets import Depthwise, Plain, Residual, make


class InPlace(nn.Module):
    """Calls that overwrite what later ones, and other changes, read."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv2, self.conv3 = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((2, 6), (6, 6), (6, 6)))
        self.norm, self.relu, self.head = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x += self.conv2(x)
        z = self.conv3(self.relu(x))
        z += x
        first, second = z.relu_().split(3, dim=1)
        return self.head(torch.cat([second, first.add_(1)], dim=1).mean((2, 3)))


class Two(nn.Module):
    """Takes a tuple of tensors, as networks of several inputs do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 4)
        self.middle = nn.Linear(8, 8)

    def forward(self, inputs):
        return self.head(torch.relu(self.middle(torch.relu(self.first(inputs[0]) + self.second(inputs[1])))))


INPUTS = {**nets.INPUTS, InPlace: (2, 8, 8)}
KINDS = [Plain, Depthwise, Residual, InPlace]


def batch(kind, count, seed=1):
    return torch.randn(count, *INPUTS[kind], generator=torch.Generator().manual_seed(seed)).double()


def squared(found, expected):
    return (found - expected).square().mean()


def drafts(network, kind, made):
    """Each site at half and at a quarter of its inputs."""
    moments = gather_from([(batch(kind, 300), None)])(network, [r.request for r in made.readers], None)
    found = []
    for site in made.sites:
        for share in (2, 4):
            rule = Rule(count=max(site.n_groups // share, 1))
            draft = Draft()
            problem = site.problem(moments, relative=True)
            draft.add(site, choose(problem, rule, Reconstruct(keep=1).chosen_selection, 1), moments, True, None)
            found.append(draft)
    return found


@pytest.mark.parametrize("sampler", ["dynamic", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_whole_networks(kind, sampler):
    network = trace(make(kind))
    made = plan(network, INPUTS[kind], Reconstruct(keep="50%", sampler=sampler))
    changes = drafts(network, kind, made)
    batches = [batch(kind, 20, seed=3), batch(kind, 7, seed=4)]
    before = copy.deepcopy(network.state_dict())
    told = []
    found = losses_alone(network, [d.layers for d in changes], batches, squared, lambda: told.append(1))
    expected = [loss_of(masked(network, made, draft), network, batches, squared) for draft in changes]
    assert max(expected) > 1e-6
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-12)
    assert len(told) == len(changes) * len(batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_each_image_counts_alike():
    network = trace(make(Plain))
    made = plan(network, INPUTS[Plain], Reconstruct(keep="50%"))
    (change, *_) = drafts(network, Plain, made)
    x = batch(Plain, 30, seed=5)
    candidate = with_layers(network, change.layers)
    with torch.no_grad():
        expected = float(squared(candidate.eval()(x), network.eval()(x)))
    for parts in ([30], [20, 10], [1, 29]):
        assert losses_alone(network, [change.layers], x.split(parts), squared) == pytest.approx([expected], rel=1e-4)


def test_nodes_before_the_change_run_once():
    """A change costs what lies behind its layer; the nodes before run for the network's own outputs and once more."""
    network = trace(make(Plain))
    made = plan(network, INPUTS[Plain], Reconstruct(keep="50%"))
    calls = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    changes = drafts(network, Plain, made)
    calls.clear()
    losses_alone(network, [d.layers for d in changes], [batch(Plain, 5)], squared)
    assert len(changes) > 2
    assert len(calls) == 2


def test_networks_of_several_inputs_take_them_as_one_tuple():
    network = torch.fx.symbolic_trace(make(Two))
    layer = Layer(torch.eye(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64), None, 1.0, 0.0)
    changed = with_layers(network, {"middle": layer})
    x = torch.randn(2, 27, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    batches = [(x[0, :20], x[1, :20]), (x[0, 20:], x[1, 20:])]
    with torch.no_grad():
        expected = float(squared(changed((x[0], x[1])), network((x[0], x[1]))))
    assert losses_alone(network, [{"middle": layer}], batches, squared) == pytest.approx([expected])
    assert loss_of(changed, network, batches, squared) == pytest.approx(expected)


class Several(nn.Module):
    """Maps of two scales in training, their sum in eval mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv2, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.conv(x).relu()
        maps = [self.head(x), self.conv2(x)]
        return {"maps": maps} if self.training else maps[0].sum((2, 3)) + maps[1].sum((2, 3))


def test_networks_of_two_forms_are_compared_by_what_training_returns():
    network = trace(make(Several), (2, 8, 8), whole=True)
    layer = Layer(torch.ones(4, 6 * 9, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), None, 1.0, 0.0)
    changed = with_layers(network, {"conv2": layer})
    batches = [torch.randn(count, 2, 8, 8).double() for count in (20, 5)]
    deep = network.conv(torch.cat(batches)).relu()
    found, right = changed.conv2(deep), network.conv2(deep)
    variance = torch.stack([channel.var(correction=0) for channel in right.transpose(0, 1)]).mean()
    expected = ((found - right).square().mean() / variance / 2).item()  # the other map is the same
    of_variance = OfVariance(network, lambda: batches)
    assert losses_alone(network, [{"conv2": layer}], batches, of_variance) == pytest.approx([expected])
    assert loss_of(changed, network, batches, of_variance) == pytest.approx(expected)
