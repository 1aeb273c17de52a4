"""What criteria look at, and what they have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import ConvergenceError
from compresskit.graph.channels.walk import Channels
from compresskit.graph.operations import PACKED
from compresskit.graph.weights import by_filter
from compresskit.passes.prune.criteria.responses import Responses
from compresskit.passes.reconstruct.chaining import Gather
from compresskit.passes.reconstruct.workers import Start, silent
from compresskit.shapes import Shape

# (network, layers): by layer, see `gradients.curvatures`
Curvatures = Callable[[fx.GraphModule, Sequence[str]], dict[str, Tensor]]
Slots = Iterator[tuple[Tensor, Tensor]]  # (atoms, scores): of a place where channels have a score


@dataclass(frozen=True)
class Scored:
    """What criteria look at. prunable: (n_atoms,) bool, those that may go. gradients: by parameter, of the loss;
    responses: to images and to changed ones; moments: of what layers read and give; curvatures: of the divergence from
    the network's own outputs, in the outputs of layers; each is taken when a criterion asks for it. start: is told how
    far long work is."""

    network: fx.GraphModule
    channels: Channels
    input_shape: Shape
    prunable: Tensor
    generator: torch.Generator
    take_gradients: Callable[[fx.GraphModule], dict[str, Tensor]]
    take_responses: Callable[[fx.GraphModule, Sequence[str], AugMix], Responses]
    take_moments: Gather
    take_curvatures: Curvatures
    start: Start = silent

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

    def lacking(self, network: fx.GraphModule, channels: Channels, groups: Mapping[str, Tensor]) -> dict[str, str]:
        """Groups with channels that it has nothing to read of, by name, and what they lack. groups: their atoms."""
        found: dict[str, str] = {}
        if (known := self.has_scores(network, channels)) is None:
            return found
        for name, atoms in groups.items():
            missing = int((~known[atoms]).sum())
            some = f"{missing} of {len(atoms)} channels have" if missing < len(atoms) else "it has"
            if missing:
                found[name] = f"{self.kind} reads {self.reads}, and {some} none behind it"
        return found

    def __call__(self, scored: Scored) -> Slots:
        raise NotImplementedError


def unit(values: Tensor) -> Tensor:
    """Of scores, what they are taken in units of: their mean, and 1 where they are all 0."""
    found = values.mean()
    return found if found > 0 else torch.ones_like(found)
