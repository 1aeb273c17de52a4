"""Layers of blocks, and the order of channels between them: modules of our own, which checkpoints hold."""

from math import sqrt

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """y = x W^T + b with W block-diagonal: block g reads inputs g d to (g + 1) d - 1, d = in_features / groups.

    weight: (out_features, in_features / groups), as a grouped convolution stores it; bias: (out_features,).
    Source: SAO, section IV-A, where a sparse layer is these blocks between two orders of channels.
    """

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True) -> None:
        super().__init__()
        if groups < 1 or in_features % groups or out_features % groups:
            raise ValueError(f"{groups} groups do not divide both {in_features} and {out_features} features")
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch draws a grouped convolution of one tap."""
        nn.init.kaiming_uniform_(self.weight, a=sqrt(5))
        if self.bias is not None:
            bound = 1 / sqrt(self.weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features).

        Batches lie along the last dimension in memory, so that blocks are products of whole rows, and what follows
        element by element keeps that order: nothing is copied from one such layer to the next.
        """
        groups, inputs = self.groups, self.weight.shape[1]
        if torch.compiler.is_exporting():
            return block_product(x.unflatten(-1, (groups, inputs)), self.weight.unflatten(0, (groups, -1)), self.bias)
        rows = (x if x.ndim == 2 else x.reshape(-1, self.in_features)).t()
        blocks, weight = rows.view(groups, inputs, rows.shape[1]), self.weight.view(groups, -1, inputs)
        if self.bias is None:
            found = torch.bmm(weight, blocks)
        else:
            found = torch.baddbmm(self.bias.view(groups, -1, 1), weight, blocks)
        y = found.view(self.out_features, rows.shape[1]).t()
        # Networks may `view` what torch's own layer gives, which is contiguous; a matrix can mostly be viewed as it is
        return y if x.ndim == 2 else y.contiguous().view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, groups={self.groups}, bias={bias}"


def block_product(blocks: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of blocks (..., groups, d) with a weight (groups, c, d), without memory orders that exporters would
    have to prove for every batch size: (..., groups c)."""
    y = torch.einsum("...gi,goi->...go", blocks, weight).flatten(-2)
    return y if bias is None else y + bias


class ChannelPermutation(nn.Module):
    """Channels in another order: y[:, i] = x[:, order[i]], along dimension `dim`, which is 1 or -1.

    rows: of a shuffle, which needs no numbers: the channels are written into a matrix of so many rows, row by row, and
    read column by column. Without it the order is a buffer (channels,) int32, at first that of the channels.
    """

    order: Tensor

    def __init__(self, channels: int, rows: int | None = None, dim: int = 1) -> None:
        super().__init__()
        if dim not in (1, -1):
            raise ValueError(f"channels lie along dimension 1 or -1, given {dim}")
        if rows is not None and (rows < 1 or channels % rows):
            raise ValueError(f"{channels} channels do not fill a matrix of {rows} rows")
        self.channels, self.rows, self.dim = channels, rows, dim
        if rows is None:
            self.register_buffer("order", torch.arange(channels, dtype=torch.int32))

    @classmethod
    def of(cls, order: Tensor, dim: int = 1) -> "ChannelPermutation":
        """order: (channels,) int64. A shuffle where the order is one."""
        channels = len(order)
        columns = int(order[1]) if channels > 1 else 1  # of a matrix that is read column by column
        if columns and channels % columns == 0 and order.equal(_shuffle(channels, channels // columns).to(order)):
            return cls(channels, channels // columns, dim)
        made = cls(channels, dim=dim)
        made.order = order.to(torch.int32)
        return made

    def indices(self) -> Tensor:
        """(channels,) int64, the order."""
        return self.order.long() if self.rows is None else _shuffle(self.channels, self.rows)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.dim] != self.channels:
            raise RuntimeError(f"{x.shape[self.dim]} channels were given to a permutation of {self.channels}")
        if x.ndim != 2:
            return self._permuted(x, self.dim % x.ndim)
        return self._permuted(x.t(), 0).t()  # where batches lie along the last dimension, whole rows are moved

    def _permuted(self, x: Tensor, dim: int) -> Tensor:
        if self.rows is None:
            return x.index_select(dim, self.order)
        before, behind = x.shape[:dim], x.shape[dim + 1 :]
        matrix = x.view(*before, self.rows, self.channels // self.rows, *behind)
        return matrix.transpose(dim, dim + 1).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{self.channels}, rows={self.rows}, dim={self.dim}"


def _shuffle(channels: int, rows: int) -> Tensor:
    return torch.arange(channels).view(rows, -1).t().flatten()
