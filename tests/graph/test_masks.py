"""Masks on a network: what they set to zero, and what is left to count."""

import torch
from torch import nn

from compresskit.graph.counting import count
from compresskit.graph.masks import apply_masks, kept, prices
from compresskit.graph.trace import trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.twice(self.twice(self.conv(x))).mean((2, 3)))


def test_masks_set_to_zero_and_leave_the_rest():
    torch.manual_seed(0)
    network = trace(Net())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    mask = torch.rand(4, 3, 3, 3) > 0.5
    apply_masks(network, {"conv.weight": mask})
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] * mask if name == "conv.weight" else before[name])


def test_kept_counts_parameters_and_macs():
    network = trace(Net())
    counts = count(network, (3, 8, 8))
    assert kept(counts, {}) == (counts.parameters, counts.macs)
    masks = {
        "conv.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool),
        "twice.weight": torch.eye(4).bool()[:, :, None, None],
    }
    masks["conv.weight"].view(-1)[:10] = True
    # conv: 10 weights at 36 places; twice: 4 of 16 weights at 36 places, called twice; head: 20 weights and 5 biases
    assert kept(counts, masks) == (10 + 4 + 4 + 4 + 20 + 5, 10 * 36 + 2 * 4 * 36 + 20)


class Others(nn.Module):
    """Weights that no layer of their own multiplies by."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2, groups=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.table, self.twice, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.linear = nn.Linear(2, 2)  # of the name that the first call below has in the graph

    def forward(self, x):
        x = self.up(x).flatten(2).transpose(1, 2)
        y = x + self.table.weight[:1]
        y = nn.functional.linear(y, self.twice.weight, self.twice.bias)
        y = nn.functional.linear(y, self.twice.weight)
        z, _ = self.attention(y[:, :3], y, y, need_weights=False)
        return self.head(z.mean(1)) + self.linear(x[:, 0, :2]).sum(1, keepdim=True)


def test_a_weight_costs_what_all_products_by_it_do():
    """Of a map of 2x2, 4x4 upsampled: 16 tokens, of which 3 ask."""
    network = trace(Others())
    counts = count(network, (3, 2, 2))
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in network.named_parameters() if p.ndim > 1}
    for name, expected in {
        "up.weight": 3 * 4 * 4 * 4,  # each weight meets each input pixel
        "twice.weight": 2 * 16 * 16,
        "attention.in_proj_weight": 3 * 16 + 2 * 16 * 16,
        "attention.out_proj.weight": 3 * 16,
        "linear.weight": 4,
        "head.weight": 20,
        "table.weight": 0,
    }.items():
        assert kept(counts, {name: masks[name]})[1] == counts.macs - expected, name
        shape = tuple(masks[name].shape)
        assert prices(counts, name, shape).sum() == expected
    rows = masks["attention.in_proj_weight"].clone()
    rows[4:] = True  # what makes queries costs less
    assert kept(counts, {"attention.in_proj_weight": rows})[1] == counts.macs - 3 * 16
    price = prices(counts, "attention.in_proj_weight", (12, 4))
    assert price[:4].eq(3).all()
    assert price[4:].eq(16).all()
