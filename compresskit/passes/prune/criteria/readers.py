"""Criteria of the layers that read channels: what they would miss."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, fx

from compresskit.data.augmentation.augmix import AugMix
from compresskit.graph.channels.walk import Channels
from compresskit.graph.weights import filters
from compresskit.numerics.selection.elimination import eliminate
from compresskit.options import option
from compresskit.passes.prune.criteria.base import Scored, Slots, Worth, mean
from compresskit.passes.reconstruct.readers import connected, find_readers, refusal, static_site


@option
class AugPrune(Worth):
    """Worth keeping: what the next layers would miss; worth dropping: what passes on how augmentation changes images.

    Of a channel z that a layer reads with weights W_z: impact I = |W_z|^2 Var z(x), response A = |W_z|^2 E (z(x') -
    z(x))^2 over images x and their augmented x', each in units of its mean over the layer; score I - weight x A. The
    document describes the method in words only (section 3.1, "The AugPrune Method").
    """

    kind: Literal["augprune"] = "augprune"
    weight: Annotated[float, Ge(0)] = 0.5  # of the response to augmentation
    augmix: AugMix = AugMix()  # what makes x' of x

    reads = "inputs of layers"

    def has_scores(self, network: fx.GraphModule, channels: Channels) -> Tensor | None:
        found = torch.zeros(channels.n_atoms, dtype=torch.bool)
        for layer in self._readers(network, channels):
            found[channels.reads[layer]] = True
        return found

    def _readers(self, network: fx.GraphModule, channels: Channels) -> list[str]:
        called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
        return [layer for layer in channels.reads if layer in called]

    def __call__(self, scored: Scored) -> Slots:
        readers = self._readers(scored.network, scored.channels)
        responses = scored.take_responses(scored.network, readers, self.augmix)
        for layer in readers:
            atoms = scored.channels.reads[layer]
            module = scored.network.get_submodule(layer)
            squares = filters(module).double().square()
            groups = getattr(module, "groups", 1)
            strength = squares.unflatten(0, (groups, -1)).flatten(3).sum((1, 3)) if squares.ndim > 2 else squares.sum(0)
            impact, response = (strength.flatten() * found for found in responses[layer])
            yield atoms, impact / mean(impact) - self.weight * response / mean(response)


@option
class Backward(Worth):
    """What the layers that read a channel lose without it, when all others are fitted again.

    Channels leave one at a time, the one whose loss is least, and each is worth what is lost by then. Losses are those
    of layers' outputs, each as a share of its variance, summed over all layers that read the channel; of channels that
    the same layers read, in one group or in several, all that may go leave in one order. Layers whose moments cannot be
    taken have no say. Source: the optimal brain surgeon for groups of weights (linear neural reconstruction, 5.1).
    """

    kind: Literal["backward"] = "backward"

    reads = "layers that can be solved for"

    def has_scores(self, network: fx.GraphModule, channels: Channels) -> Tensor | None:
        found = torch.zeros(channels.n_atoms, dtype=torch.bool)
        for layer, atoms in channels.reads.items():
            found[atoms] |= refusal(network, channels, layer, from_input=False, several=True) is None
        return found

    def __call__(self, scored: Scored) -> Slots:
        channels = scored.channels
        readers, _ = find_readers(scored.network, channels, scored.input_shape, channels.reads, several=True)
        moments = scored.take_moments(scored.network, [reader.request for reader in readers.values()], None)
        for component in connected(readers.values()):
            site = static_site(component)
            assert site.atoms is not None
            stay = ~scored.prunable[site.atoms]
            if not bool(stay.all()):
                found = eliminate(site.problem(moments, relative=True), stay)
                yield site.atoms[found.order.cpu()], found.errors[1:].cpu()
