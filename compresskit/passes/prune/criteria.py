"""Criteria that a recipe can name: what each channel of a network is worth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, fx

from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import ConvergenceError
from compresskit.graph.channels.scales import norm_scales, scaled
from compresskit.graph.channels.walk import Channels
from compresskit.graph.operations import PACKED
from compresskit.graph.weights import by_filter, filters
from compresskit.numerics.pruning import criteria
from compresskit.numerics.selection.elimination import eliminate
from compresskit.options import option
from compresskit.passes.prune.groups import Group
from compresskit.passes.prune.responses import Responses
from compresskit.passes.reconstruct.chaining import Gather
from compresskit.passes.reconstruct.readers import connected, find_readers, refusal, static_site
from compresskit.shapes import Shape

Slots = Iterator[tuple[Tensor, Tensor]]  # (atoms, scores): of a place where channels have a score


@dataclass(frozen=True)
class Scored:
    """What criteria look at. prunable: (n_atoms,) bool, those that may go. gradients: by parameter, of the loss;
    responses: to images and to changed ones; moments: of what layers read and give; each is taken when a criterion asks
    for it."""

    network: fx.GraphModule
    channels: Channels
    input_shape: Shape
    prunable: Tensor
    generator: torch.Generator
    take_gradients: Callable[[fx.GraphModule], dict[str, Tensor]]
    take_responses: Callable[[fx.GraphModule, Sequence[str], AugMix], Responses]
    take_moments: Gather

    def filters(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, atoms of its outputs, filters) of each weight. Raises ConvergenceError for one that is not finite."""
        made = [(f"{layer}.weight", atoms) for layer, atoms in self.channels.writes.items()]
        made += [
            (name, atoms) for (name, dim), atoms in self.channels.slots.items() if name.endswith(PACKED) and not dim
        ]
        for name, atoms in made:
            weight = self.by_filter(name, self.network.get_parameter(name).detach())
            if not bool(weight.isfinite().all()):
                raise ConvergenceError(f"{name}: it holds NaN or infinity; take a checkpoint that is whole")
            yield name, atoms, weight

    def by_filter(self, name: str, tensor: Tensor) -> Tensor:
        """(out, in / groups, *taps) of a tensor of the shape of a weight."""
        return by_filter(self.network.get_submodule(name.rpartition(".")[0]), tensor)

    def makers(self, atoms: Tensor) -> str:
        """The layers that make these atoms, or read them where none does."""
        own = [name for name, made in self.channels.writes.items() if bool(torch.isin(made, atoms).any())]
        others = [name for name, read in self.channels.reads.items() if bool(torch.isin(read, atoms).any())]
        return " and ".join((own or others)[:3])

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        return self.take_gradients(self.network)


class Worth:
    """What criteria have in common. comparable: whether scores of different layers are; else each counts in units of
    its layer's mean. reads: what a channel without a score lacks."""

    kind: str
    comparable = True
    reads = ""

    def has_scores(self, network: fx.GraphModule, channels: Channels) -> Tensor | None:
        """(n_atoms,) bool: the channels that it has something to read of; None: all."""
        return None

    def lacking(self, network: fx.GraphModule, channels: Channels, groups: Sequence[Group]) -> dict[str, str]:
        """Groups with channels that it has nothing to read of, by name, and what they lack."""
        found: dict[str, str] = {}
        if (known := self.has_scores(network, channels)) is None:
            return found
        for group in groups:
            missing = int((~known[group.atoms]).sum())
            some = f"{missing} of {len(group.atoms)} channels have" if missing < len(group.atoms) else "it has"
            if missing:
                found[group.name] = f"{self.kind} reads {self.reads}, and {some} none behind it"
        return found

    def __call__(self, scored: Scored) -> Slots:
        raise NotImplementedError


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
            yield atoms, impact / _mean(impact) - self.weight * response / _mean(response)


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


Criterion = Magnitude | Hydra | NormScale | Taylor | AugPrune | Backward | Random | SpectralEnergy


def atom_scores(criterion: Criterion, scored: Scored, combine: Literal["mean", "sum", "max"]) -> Tensor:
    """(n_atoms,) float64: scores of all places that an atom has, combined; 0 where it has none.

    Criteria whose scores do not compare among layers are taken in units of the mean over the place first.
    Raises ConvergenceError, with the layer, for scores that are not finite, by which nothing can be put in order.
    """
    n = scored.channels.n_atoms
    places = torch.zeros(n, dtype=torch.float64)
    found = torch.full((n,), -torch.inf if combine == "max" else 0.0, dtype=torch.float64)
    for atoms, scores in criterion(scored):
        if not bool((finite := scores.isfinite()).all()):
            raise ConvergenceError(
                f"{scored.makers(atoms[~finite.cpu()])}: criterion {criterion.kind} gives NaN or infinity for "
                f"{int((~finite).sum())} of {len(scores)} channels; check the checkpoint and the data"
            )
        values = scores.cpu() if criterion.comparable else (scores / _mean(scores)).cpu()
        places.index_add_(0, atoms, torch.ones_like(values))
        if combine == "max":
            found.scatter_reduce_(0, atoms, values, "amax")
        else:
            found.index_add_(0, atoms, values)
    if combine == "mean":
        found = found / places.clamp(min=1)
    return torch.where(places > 0, found, 0.0)


def _mean(values: Tensor) -> Tensor:
    mean = values.mean()
    return mean if mean > 0 else torch.ones_like(mean)


CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "hydra": Hydra,
    "norm-scale": NormScale,
    "taylor": Taylor,
    "augprune": AugPrune,
    "backward": Backward,
    "random": Random,
    "spectral-energy": SpectralEnergy,
}
