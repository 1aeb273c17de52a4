"""First and second moments of a layer's input and output: all that a least-squares fit of one on the other needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Self

import torch
from torch import Tensor

from compresskit.numerics.moments.machine import machine_of
from compresskit.numerics.moments.matrix import Matrix
from compresskit.numerics.moments.patch_gram import add_patches, add_rows
from compresskit.numerics.moments.patches import Patches, windows


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments, divided by `count`; float64. G groups of F features, O outputs.

    mean_x: (G, F). mean_y: (O,). cxx: (G, F, F) covariance of each group's features, or one
    matrix a group that lies elsewhere. cyx: (G, O/G, F) covariance of each group's outputs with its features.
    cyy: (O,) variance of each output.
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    cxx: Tensor | Sequence[Matrix]
    cyx: Tensor
    cyy: Tensor

    @property
    def variance(self) -> float:
        """tr(Cyy) = E||y - mean y||^2."""
        return float(self.cyy.sum())

    @property
    def finite(self) -> bool:
        """Whether no mean and no moment with the target is infinite or NaN; cxx, which may lie on disk, is not read."""
        return all(bool(t.isfinite().all()) for t in (self.mean_x, self.mean_y, self.cyx, self.cyy))


@dataclass
class MomentSums:
    """Raw float64 sums over samples, on one device; they add up over batches, splits and processes in any order.

    counts: (2,) int64, positions summed over (rows of a linear layer) and batch entries. sum_x: (G, F). sum_y: (O,).
    xx: (G, F, F) sum x x^T, of which only the upper triangle is kept up. yx: (G, O/G, F) sum y x^T. yy: (O,) sum y^2.
    """

    counts: Tensor
    sum_x: Tensor
    sum_y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @classmethod
    def zeros(cls, features: int, outputs: int, groups: int = 1, device: torch.device | str = "cpu") -> Self:
        """No samples yet. features: of one group. outputs: of all groups."""
        if outputs % groups:
            raise ValueError(f"{outputs} outputs do not fall into {groups} groups of equal size")
        gram, cross = (groups, features, features), (groups, outputs // groups, features)
        sums = (
            torch.zeros(s, dtype=torch.float64, device=device) for s in (gram[:2], (outputs,), gram, cross, (outputs,))
        )
        return cls(torch.zeros(2, dtype=torch.int64, device=device), *sums)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state that `tensors` gave."""
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: the tensors themselves, so that they can be reduced over processes in place."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def count(self) -> int:
        """Positions summed over."""
        return int(self.counts[0])

    @property
    def images(self) -> int:
        """Batch entries summed over."""
        return int(self.counts[1])

    def merge(self, other: Self) -> Self:
        """Sums over the samples of both."""
        theirs = other.tensors()
        return self.from_tensors({name: tensor + theirs[name] for name, tensor in self.tensors().items()})

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, patches: Patches | None = None) -> None:
        """Adds a batch. Without patches x (..., F), y (..., O); else x (N, C, *size), y (N, O, *positions).

        Temporaries take at most half of what the sums do (for small sums about 32 MB, on a GPU 512 MB) and one batch in
        float64; `numerics.moments.patch_gram` says how they are summed. Raises ValueError where shapes disagree.
        """
        if patches is None:
            self._check(x.shape, (*y.shape[:-1], self.xx.shape[-1]))
            self._check(y.shape, (*x.shape[:-1], len(self.yy)))
            add_rows(self.xx, self.yx, x.flatten(0, -2), y.flatten(0, -2))
            outer = tuple(range(y.ndim - 1))
            self.sum_x += x.sum(outer, dtype=torch.float64)
        else:
            self._check(x.shape, (len(y), self.sum_x.numel() // prod(patches.kernel), *x.shape[2:]))
            self._check(y.shape, (len(x), len(self.yy), *patches.positions(x.shape[2:])))
            add_patches(self.xx, self.yx, x, y, patches)
            outer = (0, *range(2, y.ndim))
            taps = windows(x.sum(0, keepdim=True, dtype=torch.float64), patches)
            self.sum_x += taps.sum(tuple(range(-len(patches.kernel), 0))).view_as(self.sum_x)
        self.sum_y += y.sum(outer, dtype=torch.float64)
        self.yy += torch.linalg.vector_norm(y, dim=outer, dtype=torch.float64).square()
        self.counts[0] += y.numel() // len(self.yy)  # a tensor of both would have to be copied to the device
        self.counts[1] += len(x)

    def finish(self) -> Moments:
        """Moments of the samples. Their matrices take over the memory of the sums, which hold no samples afterwards.

        Raises ValueError if there are no samples.
        """
        count = self.count
        if count == 0:
            raise ValueError("no samples: add a batch before finish, and finish only once")
        xx, yx = self.xx, self.yx
        mean_x, mean_y = self.sum_x / count, self.sum_y / count
        cxx = xx.div_(count).baddbmm_(mean_x[:, :, None], mean_x[:, None, :], alpha=-1)
        cyx = yx.div_(count).baddbmm_(mean_y.view(len(yx), -1, 1), mean_x[:, None, :], alpha=-1)
        cyy = (self.yy / count - mean_y.square()).clamp_(min=0)  # rounding may leave a constant below zero
        self.counts.zero_()
        self.xx, self.yx = xx.new_empty(0), yx.new_empty(0)
        _mirror(cxx)
        return Moments(count, mean_x, mean_y, cxx, cyx, cyy)

    def _check(self, shape: Sequence[int], expected: Sequence[int]) -> None:
        if tuple(shape) != tuple(expected):
            raise ValueError(
                f"got a batch of shape {tuple(shape)} where the sums and the geometry ask {tuple(expected)}"
            )


def _mirror(matrix: Tensor) -> None:
    """Copies the upper triangle of (G, F, F) onto the lower one, panel by panel to spare a copy of the whole."""
    tile = machine_of(matrix.device).tile
    for start in range(0, matrix.shape[-1], tile):
        stop = start + tile
        corner = matrix[:, start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).transpose(1, 2))
        matrix[:, stop:, start:stop] = matrix[:, start:stop, stop:].transpose(1, 2)
