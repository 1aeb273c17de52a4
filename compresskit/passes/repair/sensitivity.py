"""What a network's outputs lose when some of its channels alone go, and the layers that read them are solved again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.graph.channels.walk import Channels
from compresskit.passes.reconstruct.alone import Divergence, loss_of, losses_alone
from compresskit.passes.reconstruct.chaining import Fitting, Gather, own_moments
from compresskit.passes.reconstruct.readers import find_readers, static_site, summed
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
        for number, own in enumerate(cuts):
            if number:
                tell()
            changed = torch.stack(list(own)).all(0).logical_not()
            if not bool(changed.any()):  # a group that cannot shrink
                found.append([0.0] * len(own))
                continue
            touched = [layer for layer, atoms in self.channels.reads.items() if bool(changed[atoms].any())]
            layers = self._fits(own, touched) if self.solved else [{}] * len(own)
            if len(layers[0]) == len(touched) and not bool((changed & summed(self.channels)).any()):
                found.append(losses_alone(self.network, layers, batches, self.divergence))
                continue
            losses = []
            for alive, fitted in zip(own, layers, strict=True):  # others read it, or norms or attention sum over it
                network = blind(with_layers(self.network, fitted), self.channels, alive)
                losses.append(loss_of(network, self.network, batches, self.divergence))
            found.append(losses)
        tell()
        return found

    def _fits(self, cuts: Sequence[Tensor], touched: Sequence[str]) -> list[dict[str, Layer]]:
        """New layers for each cut, by name; the ridge of the first fit serves the others."""
        readers, _ = find_readers(self.network, self.channels, self.input_shape, touched, several=True)
        if not readers:
            return [{} for _ in cuts]
        site = static_site(list(readers.values()))
        assert site.atoms is not None
        moments = self.gather(self.network, [reader.request for reader in site.readers], None)
        choices = [Choice(alive[site.atoms], Curve((), (), alive[site.atoms][None])) for alive in cuts]
        return Fitting(site, own_moments(site, moments), tuple(choices))()
