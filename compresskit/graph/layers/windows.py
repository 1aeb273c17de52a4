"""Attention in shifted windows (Swin Transformer, Liu et al. 2021), which torch.fx keeps as one opaque call.

These stand in for torchvision's private functions and do the same operations in the same order, so that results are
equal bit for bit and a checkpoint loads without torchvision.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def merge_patches(x: Tensor) -> Tensor:
    """(..., ceil(H/2), ceil(W/2), 4 C): the four pixels of each 2x2 patch of x (..., H, W, C), one behind another."""
    height, width = x.shape[-3:-1]
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    return torch.cat([x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)], -1)


def relative_position_bias(table: Tensor, index: Tensor, window_size: Sequence[int]) -> Tensor:
    """(1, heads, P, P) bias of the attention between the P positions of a window.

    table: (offsets, heads).   index: (P * P,), the offset between two positions as a row of the table.
    """
    positions = window_size[0] * window_size[1]
    return table[index].view(positions, positions, -1).permute(2, 0, 1).contiguous().unsqueeze(0)


class WindowAttention(nn.Module):
    """Self-attention inside windows of a map (N, H, W, C), the windows shifted cyclically by `shift_size`.

    The weights are arguments of the call. With `logit_scale` it is the cosine attention of Swin Transformer V2.
    scale: of the logits without it; by default 1/sqrt(D) for heads of D positions.
    """

    def __init__(
        self,
        window_size: Sequence[int],
        shift_size: Sequence[int],
        num_heads: int,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.window_size = tuple(window_size)
        self.shift_size = tuple(shift_size)
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.scale = scale

    def forward(
        self,
        x: Tensor,
        qkv_weight: Tensor,
        proj_weight: Tensor,
        position_bias: Tensor,
        qkv_bias: Tensor | None = None,
        proj_bias: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> Tensor:
        height, width = x.shape[1:3]
        right, below = -width % self.window_size[1], -height % self.window_size[0]
        x = F.pad(x, (0, 0, 0, right, 0, below))
        size = (height + below, width + right)
        # A window as large as the map has nothing to be shifted against.
        shift = tuple(s if w < n else 0 for s, w, n in zip(self.shift_size, self.window_size, size, strict=True))
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        windows = self._partition(x)
        if logit_scale is not None and qkv_bias is not None:
            qkv_bias = _without_key_bias(qkv_bias)
        query, key, value = self._heads(F.linear(windows, qkv_weight, qkv_bias))
        logits = _logits(query, key, logit_scale, self.scale) + position_bias
        if any(shift):
            mask = self._mask(size, shift, x)
            logits = (logits.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1).unsqueeze(0)).flatten(0, 1)
        weights = F.dropout(F.softmax(logits, dim=-1), self.attention_dropout, self.training)
        mixed = weights.matmul(value).transpose(1, 2).flatten(2)
        mixed = F.dropout(F.linear(mixed, proj_weight, proj_bias), self.dropout, self.training)
        out = self._join(mixed, size)
        if any(shift):
            out = torch.roll(out, shift, (1, 2))
        cropped: Tensor = out[:, :height, :width, :].contiguous()
        return cropped

    def _partition(self, x: Tensor) -> Tensor:
        """(N * windows, P, C) from the map (N, H, W, C)."""
        rows, columns = self.window_size
        x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
        return x.permute(0, 1, 3, 2, 4, 5).flatten(0, 2).flatten(1, 2)

    def _join(self, windows: Tensor, size: tuple[int, int]) -> Tensor:
        """The inverse of `_partition`, for a map of `size`."""
        rows, columns = self.window_size
        x = windows.view(-1, size[0] // rows, size[1] // columns, rows, columns, windows.shape[-1])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, *size, windows.shape[-1])

    def _heads(self, qkv: Tensor) -> Tensor:
        """(3, windows, heads, P, C / heads): query, key and value."""
        return qkv.view(*qkv.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)

    def _mask(self, size: tuple[int, int], shift: Sequence[int], like: Tensor) -> Tensor:
        """(windows, P, P): -100 between positions that only the cyclic shift brought into one window, 0 elsewhere."""
        regions = like.new_zeros(size)
        bands = [
            (slice(0, -window), slice(-window, -step), slice(-step, None))
            for window, step in zip(self.window_size, shift, strict=True)
        ]
        for number, (row, column) in enumerate((row, column) for row in bands[0] for column in bands[1]):
            regions[row, column] = number
        regions = self._partition(regions[None, :, :, None]).squeeze(2)
        different = regions.unsqueeze(1) != regions.unsqueeze(2)
        return torch.zeros_like(different, dtype=like.dtype).masked_fill(different, -100.0)


def _without_key_bias(qkv_bias: Tensor) -> Tensor:
    query, _, value = qkv_bias.chunk(3)
    return torch.cat((query, torch.zeros_like(query), value))


def _logits(query: Tensor, key: Tensor, logit_scale: Tensor | None, scale: float | None) -> Tensor:
    if logit_scale is None:
        return (query * (query.shape[-1] ** -0.5 if scale is None else scale)).matmul(key.transpose(-2, -1))
    cosine = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
    return cosine * torch.clamp(logit_scale, max=log(100.0)).exp()
