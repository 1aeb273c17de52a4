"""What a network costs by how much each of its layers keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """constant + linear . k + k^T coupling k + sum_s own_s(k_s), of amounts k (n,): a weight has as many entries as the
    product of its inputs and outputs.

    linear: (n,). coupling: (n, n), symmetric. own: what is no polynomial, of amounts (..., n), each on its own; None
    for nothing.
    """

    constant: float
    linear: Tensor
    coupling: Tensor
    own: Callable[[Tensor], Tensor] | None = None

    def __call__(self, kept: Tensor) -> Tensor:
        """(m, n) amounts -> (m,)."""
        total = self.constant + kept @ self.linear + ((kept @ self.coupling) * kept).sum(1)
        return total if self.own is None else total + self.own(kept).sum(1)

    def alone(self, kept: Tensor) -> Tensor:
        """(p, n) amounts -> (p, n) own_s."""
        return torch.zeros_like(kept) if self.own is None else self.own(kept)
