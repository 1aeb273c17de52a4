"""Attention as some write it: the law, and what may go."""

import pytest
import torch
from torch import nn

from compresskit.graph.channels.walk import find_channels
from compresskit.graph.trace import trace
from tests.graph.channels.law import check_law


class Biased(nn.Module):
    """Query, key and value of BEiT: a weight of one layer, and a bias out of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Linear(3, 8), nn.Linear(8, 24, bias=False), nn.Linear(8, 2)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("k_bias", torch.zeros(8))

    def forward(self, x):
        x = self.embed(x)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(x.shape[0], x.shape[1], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.head(x.transpose(1, 2).flatten(2)).mean(1)


class AmongChannels(nn.Module):
    """Attention of XCiT: positions in heads are mixed, so that whole heads go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 2)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x):
        x = self.embed(x)
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, 2, C // 2).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        x = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1) @ v
        return self.head(x.permute(0, 3, 1, 2).reshape(B, N, C)).mean(1)


class Relative(nn.Module):
    """Heads among samples, and a table of positions that is multiplied with queries (BoTNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.zeros(5, 4))

    def forward(self, x):
        x = self.embed(x)
        B, N, C = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.transpose(1, 2).reshape(B * 2, C // 2, N).transpose(1, 2) for y in (q, k, v))
        logits = torch.bmm(q * 0.5, k.transpose(1, 2)) + q @ self.table.transpose(-1, -2)
        x = torch.bmm(logits.softmax(-1), v).transpose(1, 2).reshape(B, C, N).transpose(1, 2)
        return self.head(x).mean(1)


class Rotary(nn.Module):
    """Pairs of positions are turned (EVA), or halves of them (Llama)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.q2, self.k2, self.v2 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("cos", torch.zeros(5, 4))
        self.register_buffer("sin", torch.zeros(5, 4))

    def turn_pairs(self, x):
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * self.cos + turned * self.sin

    def turn_halves(self, x):
        turned = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * self.cos + turned * self.sin

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turn_pairs(q), self.turn_pairs(k)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q2, self.k2, self.v2))
        q, k = self.turn_halves(q), self.turn_halves(k)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("heads", ["positions", "whole"])
@pytest.mark.parametrize("kind", [Biased, AmongChannels, Relative, Rotary])
def test_attention_as_some_write_it(kind, heads, seed):
    torch.manual_seed(seed)
    check_law(kind(), torch.randn(2, 5, 3, dtype=torch.float64), seed, heads)
    channels = find_channels(trace(kind()), (5, 3), heads)
    free = {channels.kinds[atom] for atom in range(channels.n_atoms) if atom not in channels.frozen}
    whole = (heads == "whole" or kind is AmongChannels) and kind is not Relative
    assert {"heads" if whole else "head-dim"} <= free <= {"channels", "heads" if whole else "head-dim", "hidden"}
