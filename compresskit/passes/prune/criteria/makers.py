"""Criteria of the tensors that make channels: their filters, and the norms behind them."""

from typing import Literal

import torch
from torch import Tensor, fx

from compresskit.graph.channels.scales import norm_scales, scaled
from compresskit.graph.channels.walk import Channels
from compresskit.numerics.pruning import criteria
from compresskit.options import option
from compresskit.passes.prune.criteria.base import Scored, Slots, Worth


@option
class Magnitude(Worth):
    """The norm of the filter that makes a channel."""

    kind: Literal["magnitude"] = "magnitude"
    norm: Literal["l1", "l2"] = "l2"  # of the filter

    comparable = False

    def __call__(self, scored: Scored) -> Slots:
        order = 1.0 if self.norm == "l1" else 2.0
        yield from ((atoms, criteria.magnitude(weight, order)) for _, atoms, weight in scored.filters())


@option
class Hydra(Worth):
    """The l1 norm of HYDRA's scaled weights, as ME-Prune takes it (layerwise training, equation 3.1)."""

    kind: Literal["hydra"] = "hydra"

    def __call__(self, scored: Scored) -> Slots:
        yield from ((atoms, criteria.hydra(weight)) for _, atoms, weight in scored.filters())


@option
class NormScale(Worth):
    """|gamma| of the norms that a channel goes through (network slimming, Liu et al. 2017)."""

    kind: Literal["norm-scale"] = "norm-scale"

    reads = "norms with a scale"

    def has_scores(self, network: fx.GraphModule, channels: Channels) -> Tensor | None:
        return scaled(network, channels)

    def __call__(self, scored: Scored) -> Slots:
        for _, atoms, gamma in norm_scales(scored.network, scored.channels):
            yield atoms, gamma


@option
class Taylor(Worth):
    """The change of the loss when a channel goes, to first order: |sum w g| over its filter, from training images."""

    kind: Literal["taylor"] = "taylor"

    def __call__(self, scored: Scored) -> Slots:
        for name, atoms, weight in scored.filters():
            yield atoms, criteria.first_order(weight, scored.by_filter(name, scored.gradients[name]))


@option
class Random(Worth):
    """As good as any other, by the recipe's seed: what every criterion must beat."""

    kind: Literal["random"] = "random"

    def __call__(self, scored: Scored) -> Slots:
        yield (
            torch.arange(scored.channels.n_atoms),
            torch.rand(scored.channels.n_atoms, generator=scored.generator, dtype=torch.float64),
        )


@option
class SpectralEnergy(Worth):
    """A filter's share in the heavy tail of its layer's spectrum."""

    kind: Literal["spectral-energy"] = "spectral-energy"
    comparable = False

    def __call__(self, scored: Scored) -> Slots:
        yield from ((atoms, criteria.spectral_energy(weight)) for _, atoms, weight in scored.filters())
