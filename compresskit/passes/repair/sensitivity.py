"""What a network's outputs lose when some of its channels alone go, and the layers that read them are solved again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.graph.channels.walk import Channels
from compresskit.passes.held_out import Divergence, loss_of
from compresskit.passes.reconstruct.alone import losses_alone
from compresskit.passes.reconstruct.chaining import Fitting, Gather, own_moments
from compresskit.passes.reconstruct.readers import Reader, find_readers, static_site, summed
from compresskit.passes.reconstruct.refitted import Layer, with_layers
from compresskit.passes.reconstruct.selection import Choice, Curve
from compresskit.passes.repair.layers import blind
from compresskit.shapes import Shape


@dataclass(frozen=True)
class Sensitivity:
    """What judges a cut. images: batches of held-out ones. divergence: of their outputs from the original's. solved:
    whether layers that read what is cut are solved again, by least squares, before that is measured.
    """

    network: fx.GraphModule
    channels: Channels
    input_shape: Shape
    gather: Gather
    images: Callable[[], Iterable[Any]]
    divergence: Divergence
    solved: bool

    def losses(self, cuts: Sequence[Sequence[Tensor]], tell: Callable[[], None] = lambda: None) -> list[list[float]]:
        """Mean divergence for each of several cuts, (n_atoms,) bool of what is alive, of each of several groups.

        tell: is called behind the cuts of each group.
        """
        batches, found = list(self.images()), []
        for own in cuts:
            found.append(self._of_group(own, batches))
            tell()
        return found

    def _of_group(self, cuts: Sequence[Tensor], batches: Sequence[Any]) -> list[float]:
        changed = torch.stack(list(cuts)).all(0).logical_not()
        if not bool(changed.any()):  # a group that cannot shrink
            return [0.0] * len(cuts)
        touched = [layer for layer, atoms in self.channels.reads.items() if bool(changed[atoms].any())]
        layers = self._fits(cuts, touched) if self.solved else [{}] * len(cuts)
        if len(layers[0]) == len(touched) and not bool((changed & summed(self.channels)).any()):
            return losses_alone(self.network, layers, batches, self.divergence)
        losses = []
        for alive, fitted in zip(cuts, layers, strict=True):  # others read it, or norms or attention sum over it
            network = blind(with_layers(self.network, fitted), self.channels, alive)
            losses.append(loss_of(network, self.network, batches, self.divergence))
        return losses

    @cached_property
    def _readers(self) -> dict[str, Reader]:
        """All layers that can be solved, found once for all groups."""
        return find_readers(self.network, self.channels, self.input_shape, self.channels.reads, several=True)[0]

    def _fits(self, cuts: Sequence[Tensor], touched: Sequence[str]) -> list[dict[str, Layer]]:
        """New layers for each cut, by name; the ridge of the first fit serves the others."""
        readers = [self._readers[layer] for layer in touched if layer in self._readers]
        if not readers:
            return [{} for _ in cuts]
        site = static_site(readers)
        assert site.atoms is not None
        moments = self.gather(self.network, [reader.request for reader in site.readers], None)
        choices = [Choice(alive[site.atoms], Curve((), (), alive[site.atoms][None])) for alive in cuts]
        return Fitting(site, own_moments(site, moments), tuple(choices))()
