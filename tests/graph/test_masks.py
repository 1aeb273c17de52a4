"""Masks on a network: what they set to zero, and what is left to count."""

import torch
from torch import nn

from compresskit.graph.counting import count
from compresskit.graph.masks import apply_masks, kept
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
