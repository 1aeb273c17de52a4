"""Centred kernel alignment: how alike two sets of features of the same samples are, whatever their axes and scale."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

LEAST = 4  # samples of a batch, below which the estimator divides by zero


Estimator = Literal["unbiased", "biased"]


class BatchedCKA:
    """CKA of every layer of one net with every layer of another, from batches of samples.

    CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), with linear kernels K = X X^T and the unbiased estimator

        HSIC(K, L) = [tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2 / (n-2) 1'KL1] / (n(n-3)),

    K and L without their diagonals, averaged over batches: so it needs no kernel of the whole data set, and does not
    grow as batches shrink, which the biased one does, HSIC(K, L) = tr(K H L H) / (n-1)^2 with H = I - 11'/n.
    Sources: Kornblith et al. 2019; Song et al. 2012, equation 5; Nguyen, Raghu and Kornblith 2021, equation 3;
    biased: layerwise training, (2.14) and (2.15).
    """

    def __init__(self, estimator: Estimator = "unbiased") -> None:
        self._centred = {"unbiased": _unbiased, "biased": _biased}[estimator]
        self._sums: list[Tensor] = []  # HSIC of each pair, of each layer of the first with itself, of the second

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor] | None = None) -> None:
        """Features of one batch, (n, anything) each; without a second net the first is compared with itself.

        Raises ValueError for less than 4 samples.
        """
        one = self._kernels(first)
        other = one if second is None else self._kernels(second)
        sums = [one @ other.T, one.square().sum(1), other.square().sum(1)]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums

    def similarity(self) -> Tensor:
        """(layers of the first, layers of the second), 1 for equal representations; NaN for features all equal.

        Raises ValueError before the first batch.
        """
        if not self._sums:
            raise ValueError("CKA needs one batch at least")
        cross, first, second = self._sums
        return cross / (first[:, None] * second).sqrt()

    def _kernels(self, features: Sequence[Tensor]) -> Tensor:
        """(layers, n^2): kernels centred and scaled so that the product of two is their HSIC."""
        kernels = []
        for x in features:
            if len(x) < LEAST:
                raise ValueError(f"CKA needs batches of {LEAST} samples at least, given {len(x)}")
            flat = x.detach().flatten(1).double()
            kernels.append(self._centred(flat @ flat.T).flatten())
        return torch.stack(kernels)


def _unbiased(kernel: Tensor) -> Tensor:
    """U_ij = K_ij - sum_l K_il / (n-2) - sum_l K_lj / (n-2) + sum K / ((n-1)(n-2)) off the diagonal, 0 on it (Szekely
    and Rizzo 2014), divided by sqrt(n(n-3))."""
    n = len(kernel)
    kernel.fill_diagonal_(0)
    rows = kernel.sum(1)
    centred: Tensor = kernel - (rows[:, None] + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0) / math.sqrt(n * (n - 3))


def _biased(kernel: Tensor) -> Tensor:
    """H K H / (n-1)."""
    means = kernel.mean(1)
    centred: Tensor = kernel - means[:, None] - means + means.mean()
    return centred / (len(kernel) - 1)
