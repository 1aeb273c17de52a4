"""Criteria of the layers that read channels: what they would miss."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, fx

from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import ConvergenceError
from compresskit.graph.channels.walk import Channels
from compresskit.graph.weights import filters
from compresskit.numerics.moments.moments import Moments
from compresskit.numerics.pruning.fisher import in_units_of_loss
from compresskit.numerics.selection.elimination import eliminate
from compresskit.options import option
from compresskit.passes.prune.criteria.base import Scored, Slots, Worth, unit
from compresskit.passes.reconstruct.chaining import cubes
from compresskit.passes.reconstruct.readers import Reader, connected, find_readers, refusal, static_site


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
            yield atoms, impact / unit(impact) - self.weight * response / unit(response)


class Refitted(Worth):
    """What channels have in common that leave one at a time, the one whose loss is least, all others fitted again.

    Each is worth what is lost by then. Losses are those of layers' outputs, summed over all layers that read the
    channel; of channels that the same layers read, in one group or in several, all that may go leave in one order.
    Layers whose moments cannot be taken have no say. relative: losses are in units of the variance of the outputs.
    """

    reads = "layers that can be solved for"
    relative = True

    def has_scores(self, network: fx.GraphModule, channels: Channels) -> Tensor | None:
        found = torch.zeros(channels.n_atoms, dtype=torch.bool)
        for layer, atoms in channels.reads.items():
            found[atoms] |= refusal(network, channels, layer, from_input=False, several=True) is None
        return found

    def __call__(self, scored: Scored) -> Slots:
        channels = scored.channels
        readers, _ = find_readers(scored.network, channels, scored.input_shape, channels.reads, several=True)
        moments = scored.take_moments(scored.network, [reader.request for reader in readers.values()], None)
        moments = self.weighed(scored, readers, moments)
        sites = [static_site(component) for component in connected(readers.values())]
        done = scored.start("what channels are worth", [cubes(site) for site in sites])
        for site in sites:
            assert site.atoms is not None
            stay = ~scored.prunable[site.atoms]
            if not bool(stay.all()):
                found = eliminate(site.problem(moments, relative=self.relative), stay)
                yield site.atoms[found.order.cpu()], found.errors[1:].cpu()
            done()

    def weighed(self, scored: Scored, readers: Mapping[str, Reader], moments: dict[str, Moments]) -> dict[str, Moments]:
        """The moments by which losses are counted."""
        return moments


@option
class Backward(Refitted):
    """What the layers that read a channel lose without it, when all others are fitted again.

    Channels leave one at a time, the one whose loss is least, and each is worth what is lost by then, in units of the
    variance of each layer's outputs. Source: the optimal brain surgeon for groups of weights (linear neural
    reconstruction, 5.1).
    """

    kind: Literal["backward"] = "backward"


@option
class Fisher(Refitted):
    """What the network's outputs lose without a channel, to second order and without labels, all others fitted again.

    As `backward`, but the errors of a layer's outputs count by what they cost at the end: 1/2 E (g . e)^2 with e the
    error and g the gradients whose mean square is the curvature of the divergence from the network's own outputs (of
    classes the Fisher matrix of its own predictions, else that of squares). So scores are in units of the divergence,
    of all layers alike. Source: the optimal brain surgeon (Hassibi and Stork 1993) with Kronecker factors (Martens and
    Grosse 2015) of the coupled channels' columns.
    """

    kind: Literal["fisher"] = "fisher"
    relative = False

    def weighed(self, scored: Scored, readers: Mapping[str, Reader], moments: dict[str, Moments]) -> dict[str, Moments]:
        found = {}
        curvatures = scored.take_curvatures(scored.network, list(readers))
        for layer, reader in readers.items():
            curvature, name = curvatures[layer], reader.request.name
            if not bool(curvature.isfinite().all()):
                raise ConvergenceError(
                    f"{layer}: the gradients of its outputs are not finite; check the checkpoint and the data for NaN"
                )
            weight = filters(scored.network.get_submodule(layer)).reshape(*curvature.shape[:2], -1)
            found[name] = in_units_of_loss(moments[name], weight, curvature)
        return found
