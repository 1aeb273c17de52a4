"""Masked networks repaired row by row: against numpy on unfolded activations, and the laws of it."""

import copy

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compresskit.errors import ConvergenceError
from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.passes.moments import gather_from
from compresskit.passes.repair.layers import Repair
from compresskit.passes.repair.masked import repair_masked

SHAPE = (4, 8, 8)


class Net(nn.Module):
    """Whole, grouped, depthwise and strided convolutions, with and without biases and norms, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=2, dilation=2, padding=2)
        self.last, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.last(torch.relu(self.grouped(self.depth(x)))))
        return self.head(x.mean((2, 3)))


LAYERS = ("first", "depth", "grouped", "last", "head")


def ready(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> fx.GraphModule:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return trace(module.double().eval(), shape)


@pytest.fixture
def net() -> fx.GraphModule:
    torch.manual_seed(0)
    net = ready(Net())
    with torch.no_grad():  # nothing is dead
        net.grouped.bias += 0.5
        net.last.bias += 0.5
    return net


def images(count: int = 600, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """So many are plenty for ten inputs, whose least squares have no ridge then."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gather_on(x: torch.Tensor):
    return gather_from([(part, torch.zeros(len(part))) for part in x.split(50)])


def masks_of(net: nn.Module, share: float = 0.5) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(2)
    masks = {
        name: torch.rand(parameter.shape, generator=draws) < share
        for name, parameter in net.named_parameters() if parameter.ndim > 1
    }  # fmt: skip
    for mask in masks.values():
        mask[0] = True  # a row that loses nothing
    return masks


def repaired(net: fx.GraphModule, masks, x: torch.Tensor | None = None, *, chained: bool, shape=SHAPE) -> Repair:
    return repair_masked(net, masks, gather_on(images(shape=shape) if x is None else x), shape, chained=chained)


def masked(net: fx.GraphModule, masks) -> fx.GraphModule:
    network = copy.deepcopy(net)
    apply_masks(network, masks)
    return network


def seen(network: fx.GraphModule, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By layer, what it reads and what it gives."""
    found = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.__setitem__(name, (args[0].detach(), output.detach()))
        )
        for name in LAYERS
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return found


def unfolded(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    """(outputs, samples, features): what each output of a layer reads, by torch's own unfold."""
    if isinstance(module, nn.Linear):
        return np.stack([x.numpy()] * len(module.weight))
    patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    by_group = patches.unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return by_group.repeat_interleave(len(module.weight) // module.groups, dim=0).numpy()


def by_rows(module: nn.Module, mask: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, features) and biases by numpy's least squares, each output on its kept inputs and a one."""
    weight, bias = np.zeros(mask.flatten(1).shape), np.zeros(len(mask))
    targets = y.movedim(1, 0).flatten(1).numpy()
    for row, (read, kept) in enumerate(zip(unfolded(module, x), mask.flatten(1).numpy(), strict=True)):
        given = np.concatenate([read[:, kept], np.ones((len(read), 1))], axis=1)
        *weight[row, kept], bias[row] = np.linalg.lstsq(given, targets[row], rcond=None)[0]
    return weight, bias


def bias_of(before: fx.GraphModule, after: fx.GraphModule, name: str) -> torch.Tensor:
    """What a layer adds to its outputs; that of one without a bias before a norm lies in the norm's mean."""
    module = after.get_submodule(name)
    if module.bias is not None:
        return module.bias.detach()
    return before.norm.running_mean - after.norm.running_mean


def outputs(before: fx.GraphModule, after: fx.GraphModule, name: str, reads: torch.Tensor) -> torch.Tensor:
    """Of a layer with its new weights and bias."""
    module = copy.deepcopy(after.get_submodule(name))
    module.bias = nn.Parameter(bias_of(before, after, name))
    return module(reads).detach()


@pytest.mark.parametrize("chained", [False, True])
def test_equals_numpy_on_unfolded_activations(net, chained):
    x, masks = images(), masks_of(net)
    found = repaired(net, masks, chained=chained)
    whole, own = seen(net, x), seen(found.network, x)
    for name in LAYERS:
        module = net.get_submodule(name)
        reads = own if chained else whole
        weight, bias = by_rows(module, masks[f"{name}.weight"], reads[name][0], whole[name][1])
        after = found.network.get_submodule(name).weight.detach().flatten(1)
        np.testing.assert_allclose(after.numpy(), weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bias_of(net, found.network, name).numpy(), bias, rtol=1e-5, atol=1e-6)
        targets = whole[name][1].movedim(1, 0).flatten(1).numpy()
        fitted = np.einsum("osf,of->os", unfolded(module, reads[name][0]), weight) + bias[:, None]
        lost = ((targets - fitted) ** 2).mean(1).sum() / targets.var(1).sum()
        assert found.unexplained[name] == pytest.approx(lost, rel=1e-5)
    assert not found.skipped


@pytest.mark.parametrize("chained", [False, True])
def test_zeros_stay_zero_and_the_network_that_was_given_stays(net, chained):
    masks = masks_of(net)
    state, copies = copy.deepcopy(net.state_dict()), {name: mask.clone() for name, mask in masks.items()}
    found = repaired(net, masks, chained=chained)
    for name, mask in masks.items():
        assert not bool(found.network.get_parameter(name)[~mask].any())
        assert torch.equal(mask, copies[name])
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_what_loses_nothing_stays_to_the_bit(net):
    masks = masks_of(net)
    found = repaired(net, masks, chained=False)
    for name in masks:  # a row without zeros
        assert torch.equal(found.network.get_parameter(name)[0], net.get_parameter(name)[0])
    for chained in (False, True):
        whole = {name: torch.ones_like(mask) for name, mask in masks.items()} | {"last.weight": masks["last.weight"]}
        one = repaired(net, whole, chained=chained)
        assert list(one.unexplained) == ["last"]
        for name, tensor in one.network.state_dict().items():
            assert torch.equal(tensor, net.state_dict()[name]) != (name in ("last.weight", "last.bias"))
        none = repaired(net, {name: torch.ones_like(mask) for name, mask in masks.items()}, chained=chained)
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in none.network.state_dict().items())
    again = {name: mask for name, mask in masks.items() if name != "first.weight"}
    before = masked(net, again)
    for name, tensor in repaired(before, again, chained=False).network.state_dict().items():  # zeros already
        assert torch.equal(tensor, before.state_dict()[name])


@pytest.mark.parametrize("count", [3, 20, 400])
@pytest.mark.parametrize("chained", [False, True])
def test_no_output_of_a_layer_is_worse_than_masked(net, count, chained):
    """On what the moments are of: each row alone, from what the layer reads in the original, or in the repaired net."""
    x, masks = images(count), masks_of(net)
    after = repaired(net, masks, x, chained=chained).network
    bare, whole, own = masked(net, masks), seen(net, x), seen(after, x)
    for name in LAYERS:
        reads, targets = (own if chained else whole)[name][0], whole[name][1]
        before, now = (outputs(net, network, name, reads) - targets for network in (bare, after))
        before, now = (errors.movedim(1, 0).flatten(1).square().mean(1) for errors in (before, now))
        assert bool((now <= before * (1 + 1e-9) + 1e-12).all())


def test_one_after_another_makes_up_for_what_was_lost_before(net):
    """At the network's output, from what the layers before it give: top-down is the least that its rows can reach."""
    x, masks = images(), masks_of(net, 0.4)
    after = {chained: repaired(net, masks, chained=chained).network for chained in (False, True)}
    hybrid = copy.deepcopy(after[True])
    hybrid.get_submodule("head").load_state_dict(after[False].get_submodule("head").state_dict())

    def error(network):
        return float((network(x) - net(x)).square().mean().detach())

    assert error(after[True]) < error(hybrid)
    assert error(after[True]) < error(after[False]) < error(masked(net, masks))


def test_dead_channels_and_constant_ones_do_no_harm(net):
    with torch.no_grad():
        net.norm.weight[2:5] = 0.0
        net.norm.bias[2:4], net.norm.bias[4] = -1.0, 3.0  # two are dead behind the ReLU, one is constant
    masks = masks_of(net)
    for chained in (False, True):
        found = repaired(net, masks, chained=chained).network
        assert all(bool(tensor.isfinite().all()) for tensor in found.state_dict().values())
        kept = masks["depth.weight"][2:4]
        assert torch.equal(found.depth.weight[2:4], net.depth.weight[2:4] * kept)  # nothing tells them apart


def test_moments_that_are_not_finite_are_refused(net):
    with torch.no_grad():
        net.norm.bias[0] = torch.nan
    with pytest.raises(ConvergenceError, match="not finite") as caught:
        repaired(net, masks_of(net), chained=False)
    assert caught.value.__notes__ == ["depth"]


class Odd(nn.Module):
    """Layers that have no moments, one that is called twice, and weights that are read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.attention = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice, self.tied, self.read = nn.Linear(8, 8), nn.Linear(8, 7), nn.Linear(8, 8)
        self.up = nn.ConvTranspose1d(8, 8, 1)
        self.tied.weight = self.embedding.weight

    def forward(self, x):
        x = self.embedding(x.long())
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.twice(torch.relu(self.twice(x)))
        x = self.up(x.transpose(1, 2)).transpose(1, 2)
        return self.tied(self.read(x) @ self.read.weight)


def test_what_cannot_be_solved_is_said():
    torch.manual_seed(0)
    net = ready(Odd(), (5,))
    x = torch.randint(7, (300, 5), generator=torch.Generator().manual_seed(0)).double()
    masks = masks_of(net)
    found = repaired(net, masks, x, chained=False, shape=(5,))
    assert found.skipped == {
        "embedding": "its weight is read elsewhere, too",
        "attention.in_proj_weight": "attention as one module has no moments of what is within",
        "attention.out_proj": "its weight is an argument of a call, which has no moments",
        "read": "its weight is read elsewhere, too",
        "up": "moments of ConvTranspose1d are not there yet",
    }
    assert list(found.unexplained) == ["twice"]
    bare = masked(net, masks).state_dict()
    for name, tensor in found.network.state_dict().items():
        assert torch.equal(tensor, bare[name]) != name.startswith("twice")


def test_a_layer_that_is_called_twice_is_solved_for_both_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(8, 8)

        def forward(self, x):
            return self.twice(torch.relu(self.twice(x)))

    torch.manual_seed(0)
    net = ready(Twice(), (8,))
    x, mask = images(600, (8,)), masks_of(net)["twice.weight"]
    found = repaired(net, {"twice.weight": mask}, x, chained=False, shape=(8,)).network.twice
    once = net.twice(x)
    reads = torch.cat([x, torch.relu(once)]).detach()
    weight, bias = by_rows(net.twice, mask, reads, net.twice(reads).detach())
    np.testing.assert_allclose(found.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bias.detach().numpy(), bias, rtol=1e-5, atol=1e-6)
