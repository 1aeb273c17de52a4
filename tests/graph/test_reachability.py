"""Reachability on hand-made nets, and against what changing inputs does to random ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compresskit.errors import UnsupportedModelError
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.reachability import reachability
from compresskit.graph.trace import trace
from tests.graph.nets import INPUTS, Depthwise, Plain, Residual


def linear(rows: list[str]) -> nn.Linear:
    """A layer whose weights are 1 where the row of an output says x."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor([[float(mark == "x") for mark in row] for row in rows])
    return layer


def of(*layers: nn.Module, masks=None, start=None, shape=(4,)):
    return reachability(trace(nn.Sequential(*layers)), shape, masks or {}, start)


REGULAR = ["xx..", "..xx", "xx..", "..xx"]  # two equal halves, as SAO's construction makes them


def test_two_regular_layers_connect_all_inputs_to_all_outputs():
    """SAO, Figure 3: neither layer is full, both together are."""
    found = of(linear(REGULAR), nn.Tanh(), linear(REGULAR))
    assert found.start == "0"
    assert found.matrices["0"].tolist() == [[mark == "x" for mark in row] for row in REGULAR]
    assert found.matrices["2"].all()
    assert found.disconnected == {"0": 8, "2": 0}
    assert found.connected_from == (2, "2")


def test_blocks_that_never_mix_never_connect():
    found = of(linear(["xx..", "xx..", "..xx", "..xx"]), nn.ReLU(), linear(["xx..", "xx..", "..xx", "..xx"]))
    assert found.disconnected == {"0": 8, "2": 8}
    assert found.connected_from is None


def test_masks_count_before_zeros():
    layer = linear(["xx..", "..xx", "xx..", "...."])
    mask = torch.tensor([[False] * 4] * 3 + [[True] * 4])
    found = of(layer, masks={"0.weight": mask})
    assert found.matrices["0"].tolist() == mask.tolist()


def test_grouped_layers_between_orders():
    grouped, order = GroupedLinear(4, 4, groups=2), ChannelPermutation(4)
    order.order = torch.tensor([2, 0, 3, 1], dtype=torch.int32)
    nn.init.ones_(grouped.weight)
    found = of(order, grouped)
    dense = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[:, torch.tensor([2, 0, 3, 1]).argsort()]
    start = reachability(trace(nn.Sequential(nn.Linear(4, 4), order, grouped)), (4,), {"0.weight": torch.eye(4) > 0})
    assert start.matrices["2"].tolist() == (dense > 0).tolist()
    assert found.start == "1"


class MaxMin(nn.Module):
    def forward(self, x):
        first, second = x.chunk(2, 1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)


def test_maxmin_mixes_pairs():
    eye = torch.eye(4, dtype=torch.bool)
    found = of(nn.Linear(4, 4), MaxMin(), nn.Linear(4, 4), masks={"0.weight": eye, "2.weight": eye})
    assert found.matrices["2"].tolist() == [[i % 2 == j % 2 for j in range(4)] for i in range(4)]


class Joined(nn.Module):
    """Two ways from the input, one joined behind the other, the mean over positions last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        both = torch.cat([functional.relu(self.first(x)), self.second(x)], dim=1)
        return self.last(both.mean([2, 3]))


def sparse(network: nn.Module, share: float) -> dict[str, torch.Tensor]:
    """Random masks, put on."""
    draws = torch.Generator().manual_seed(3)
    masks = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            masks[name] = torch.rand(parameter.shape[:2], generator=draws) < share
            masks[name] = masks[name].view(*parameter.shape[:2], *[1] * (parameter.ndim - 2)).expand_as(parameter)
            parameter.data = torch.rand(parameter.shape, generator=draws).double().add(0.1) * masks[name]
        elif name.endswith("bias"):
            parameter.data.zero_()  # a negative one could stop all at a ReLU
    return masks


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise, Joined])
def test_a_path_is_what_a_change_goes_along(kind):
    """With positive weights and inputs nothing cancels: an input that is larger makes each output larger it reaches."""
    module = kind().double().eval()
    masks, shape = sparse(module, 0.15 if kind is Residual else 0.3), INPUTS.get(kind, (4, 5, 5))
    network = trace(module)
    first = next(name for name, layer in module.named_modules() if isinstance(layer, nn.Conv1d | nn.Conv2d))
    found = reachability(network, shape, masks, first)
    base = torch.rand(1, *shape, dtype=torch.float64)
    outputs = []
    for channel in range(shape[0]):
        moved = base.clone()
        moved[:, channel] += 1
        outputs.append((network(moved) - network(base))[0].detach().abs() > 1e-12)
    last = list(found.matrices)[-1]
    assert found.matrices[last].tolist() == torch.stack(outputs, 1).tolist()
    assert 0 < found.disconnected[last] < found.matrices[last].numel()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.softmax(self.fc(x), 1)


def test_refusals():
    with pytest.raises(UnsupportedModelError, match="softmax: paths through softmax are not known"):
        reachability(trace(Attention()), (4,), {})
    with pytest.raises(UnsupportedModelError, match="no layer has as many outputs as inputs"):
        of(nn.Linear(4, 3))
    with pytest.raises(UnsupportedModelError, match="more than one dimension"):
        of(nn.Linear(4, 4), shape=(3, 4))
