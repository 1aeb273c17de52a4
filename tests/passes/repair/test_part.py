"""A block as a function of its weights: products against a Jacobian that is written out, and what is left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from compresskit.distributed import Group
from compresskit.graph.capture import capture
from compresskit.graph.segments import Block, find_blocks
from compresskit.graph.trace import trace
from compresskit.passes.repair.part import Part, Sample, sample_of

SHAPE = (3, 6, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = nn.functional.gelu(x + self.norm(self.conv(x)))
        return self.last(x).flatten(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().double()
    net.norm.running_var.uniform_(0.5, 2)
    return trace(net.eval(), SHAPE)


@pytest.fixture
def block(net) -> Block:
    (found,) = [block for block in find_blocks(net, 1, lambda node: True) if block.layers == ("conv",)]
    return found


def sample(net, block, count=5, seed=1) -> Sample:
    draws = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(2):
        x, y = capture(net, [block.source, block.target])(torch.randn(count, *SHAPE, generator=draws).double())
        pairs.append((x.detach(), (y + torch.randn(y.shape, generator=draws)).detach()))
    return sample_of(pairs, 1, Group())


def written_out(net, block, sample, sizes):
    """The residual and its Jacobian by all weights in units of their size, column by column of finite differences."""
    inner = copy.deepcopy(net)
    names = [name for name, _ in inner.named_parameters() if name.split(".")[0] in ("conv", "norm")]
    flat = torch.cat([inner.get_parameter(name).detach().flatten() for name in names])
    scale = torch.cat([torch.full_like(inner.get_parameter(name), sizes[name]).flatten() for name in names])

    def residual(weights):
        pieces = weights.split([inner.get_parameter(name).numel() for name in names])
        weights = {n: p.view_as(inner.get_parameter(n)) for n, p in zip(names, pieces, strict=True)}
        found = []
        for x, y in sample.pairs:
            z = functional_call(inner.conv, {"weight": weights["conv.weight"], "bias": weights["conv.bias"]}, x)
            z = functional_call(inner.norm, {"weight": weights["norm.weight"], "bias": weights["norm.bias"]}, z)
            found.append((nn.functional.gelu(x + z) - y).flatten())
        return torch.cat(found).detach()

    step, columns = 1e-6, []
    for place in range(len(flat)):
        moved = torch.zeros_like(flat)
        moved[place] = step * scale[place]
        columns.append((residual(flat + moved) - residual(flat - moved)) / (2 * step))
    return residual(flat), torch.stack(columns, 1), names


def sizes_of(net):
    return {name: max(float(p.detach().square().mean().sqrt()), 1e-3) for name, p in net.named_parameters()}


def test_gradient_and_product_are_those_of_the_jacobian(net, block):
    images = sample(net, block)
    part = Part(net, block, {}, Group())
    residual, jacobian, _ = written_out(net, block, images, sizes_of(net))
    energy = float(images.energy)
    torch.testing.assert_close(part.gradient(images), jacobian.T @ residual / energy, rtol=1e-6, atol=1e-9)
    change = torch.randn(jacobian.shape[1], dtype=torch.float64)
    expected = jacobian.T @ (jacobian @ change) / energy
    torch.testing.assert_close(part.product(images, change), expected, rtol=1e-6, atol=1e-9)
    assert float(part.error(images)) == pytest.approx(float(residual @ residual) / energy)


def test_the_energy_is_the_variance_of_each_channel_and_not_its_mean(net, block):
    images = sample(net, block)
    y = torch.cat([y for _, y in images.pairs])
    expected = sum(float((y[:, c] - y[:, c].mean()).square().sum()) for c in range(y.shape[1]))
    assert float(images.energy) == pytest.approx(expected)
    assert images.images == 10
    still = sample_of([(y, torch.full_like(y, 3.0))], 1, Group())
    assert float(still.energy) == pytest.approx(1e-3 * 9 * y.numel())  # of what does not vary, a share of its square


def test_moves_are_in_units_of_the_tensors_and_can_be_taken_back(net, block):
    before, sizes = {n: p.clone() for n, p in net.named_parameters()}, sizes_of(net)
    part = Part(net, block, {}, Group())
    change = torch.ones(4 * 4 * 9 + 4 + 4 + 4, dtype=torch.float64)
    part.move(change)
    for name, parameter in net.named_parameters():
        moved = sizes[name] if name.split(".")[0] in ("conv", "norm") else 0.0
        torch.testing.assert_close(parameter, before[name] + moved)
    part.move(-change)
    torch.testing.assert_close(dict(net.named_parameters()), before)


def test_masked_weights_do_not_move(net, block):
    mask = torch.rand(4, 4, 3, 3) > 0.5
    part = Part(net, block, {"conv.weight": mask}, Group())
    images = sample(net, block)
    before = net.conv.weight.clone()
    part.move(part.gradient(images))
    assert torch.equal(net.conv.weight[~mask], before[~mask])
    assert not torch.equal(net.conv.weight[mask], before[mask])
    assert not part.product(images, torch.ones(4 * 4 * 9 + 12, dtype=torch.float64))[:144][~mask.flatten()].any()


def test_weights_that_others_read_too_stay(net):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.own = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.own(torch.relu(self.value(torch.relu(self.value(x))))).flatten(1)

    net = trace(Twice().double().eval(), SHAPE)
    first, second, last = find_blocks(net, 1, lambda node: True)
    assert [Part(net, block, {}, Group()).size for block in (first, second, last)] == [0, 0, 12]
    assert Part(net, last, {}, Group()).gradient(sample(net, last)).shape == (12,)


def test_a_call_that_works_in_place_does_not_change_what_enters(net):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.two(self.one(x).mul_(2)).flatten(1)

    net = trace(InPlace().double().eval(), SHAPE)
    conv = next(node for node in net.graph.nodes if node.name == "one")
    target = next(node for node in net.graph.nodes if node.name == "two")
    images = sample(net, Block(conv.name, target.name, ("two",)))
    part, kept = Part(net, Block(conv.name, target.name, ("two",)), {}, Group()), images.pairs[0][0].clone()
    part.product(images, torch.ones(8, dtype=torch.float64))
    part.gradient(images)
    assert torch.equal(images.pairs[0][0], kept)
