"""Networks judged on held-out inputs: the same however they come in batches, and however much is kept."""

import pytest
import torch
from torch import nn

from compresskit.graph.trace import trace
from compresskit.passes.held_out import HeldOut, OfVariance, loss_of


def squared(found, expected):
    return (found - expected).square().mean()


def test_what_is_held_out_is_judged_alike_however_much_is_kept():
    torch.manual_seed(0)
    network, other = (trace(nn.Linear(4, 3), (4,)) for _ in range(2))
    batches, runs = [torch.randn(5, 4) for _ in range(3)], []
    network.register_forward_hook(lambda *_: runs.append(1))
    expected = loss_of(other, network, batches, squared)
    for room, computed in ((0, 6), (2 * 5 * 3 * 4, 4), (2**20, 3)):  # bytes: none, two of three batches, all
        judge = HeldOut(network, lambda: batches, squared, room)
        runs.clear()
        assert [judge(other), judge(other)] == [expected, expected]
        assert len(runs) == computed
        assert judge(network) == 0


class Pair(nn.Module):
    """A map, and numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 1), nn.Linear(2, 4)

    def forward(self, x):
        return {"map": self.conv(x), "numbers": self.linear(x.mean((2, 3)))}


@pytest.mark.parametrize("sizes", [[7], [4, 3], [6, 1], [1] * 7])
def test_a_share_of_the_variance_is_of_all_inputs_together(sizes):
    torch.manual_seed(0)
    network, other = (trace(Pair().double(), (2, 5, 5), whole=True) for _ in range(2))
    x = torch.randn(7, 2, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        found, right = other(x), network(x)
    parts = []
    for name in ("map", "numbers"):
        variance = torch.stack([channel.var(correction=0) for channel in right[name].transpose(0, 1)]).mean()
        parts.append(float((found[name] - right[name]).square().mean() / variance))
    judge = HeldOut(network, lambda: x.split(sizes), OfVariance(network, lambda: x.split(sizes)))
    assert judge(other) == pytest.approx(sum(parts) / 2, rel=1e-10)
    assert judge(network) == 0
