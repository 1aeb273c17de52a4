"""Groups of channels that are pruned together, and the size of a network by what is left of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.channels.walk import Channels
from compresskit.graph.counting import count
from compresskit.graph.selectors import select


@dataclass(frozen=True)
class Group:
    """Channels that layers make together: of one layer, or of all that write to a residual sum.

    layers: that make them. atoms: (n,) those that may go; others of these layers stay.
    """

    layers: tuple[str, ...]
    atoms: Tensor

    @property
    def name(self) -> str:
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} and {len(self.layers) - 1} more"


def find_groups(
    network: fx.GraphModule, channels: Channels, selectors: Sequence[str]
) -> tuple[list[Group], dict[str, str]]:
    """Groups in the order of the network, and why layers are left whole.

    Raises RecipeError for a selector that means nothing, and where no channel at all may go.
    """
    wanted = set(select(network, selectors))
    groups: list[Group] = []
    skipped: dict[str, str] = {}
    for layers in _together(channels):
        atoms = torch.cat([channels.writes[layer] for layer in layers]).unique()
        free = torch.tensor([atom for atom in atoms.tolist() if atom not in channels.frozen], dtype=torch.int64)
        if left_out := [layer for layer in layers if layer not in wanted]:
            reason = f"its channels are those of {left_out[0]}, which no selector names"
            skipped |= {layer: reason for layer in layers if layer in wanted}
        elif not len(free):
            skipped |= {layer: channels.frozen[int(atoms[0])] for layer in layers}
        else:
            groups.append(Group(tuple(layers), free))
    for layer in sorted(wanted - channels.writes.keys()):
        skipped[layer] = "its channels are those that it reads (depthwise), or its weights are used more than once"
    if not groups:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(skipped.items())[:3])
        raise RecipeError(f"prune: no channel can go ({reasons}); see `show layers` and prune.layers")
    return groups, skipped


def _together(channels: Channels) -> list[list[str]]:
    """Layers that make the same channels, directly or through others."""
    owner: dict[int, list[str]] = {}
    for layer, atoms in channels.writes.items():
        members = [layer]
        for found in {id(owner[atom]): owner[atom] for atom in atoms.tolist() if atom in owner}.values():
            members = found + members
        for member in members:
            owner |= dict.fromkeys(channels.writes[member].tolist(), members)
    order = {layer: place for place, layer in enumerate(channels.writes)}
    unique = {id(members): members for members in owner.values()}
    return sorted(unique.values(), key=lambda members: min(order[layer] for layer in members))


class CutSizes:
    """Parameters, multiply-accumulates and channels of a network by what is alive, without cutting it."""

    def __init__(self, network: fx.GraphModule, channels: Channels, input_shape: tuple[int, ...]) -> None:
        self._channels = channels
        parameters = dict(network.named_parameters())
        self._shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        counted = count(network, input_shape)
        self._macs = {}  # of one entry of each weight
        self._fixed = 0.0  # of what has no weight
        for layer in counted.layers:
            name = f"{layer.name}.weight"
            if layer.macs and name in parameters:
                self._macs[name] = layer.macs / parameters[name].numel()
            else:
                self._fixed += layer.macs

    def __call__(self, goal: str, alive: Tensor) -> float:
        """`params`, `macs` or `channels` (outputs of layers) with these atoms, (n_atoms,) bool."""
        if goal == "channels":
            return float(sum(int(alive[atoms].sum()) for atoms in self._channels.writes.values()))
        if goal == "macs":
            return self._fixed + sum(each * self._entries(name, alive) for name, each in self._macs.items())
        return float(sum(self._entries(name, alive) for name in self._shapes))

    def _entries(self, name: str, alive: Tensor) -> int:
        entries = 1
        for dim, size in enumerate(self._shapes[name]):
            atoms = self._channels.slots.get((name, dim))
            entries *= size if atoms is None else int(alive[atoms].sum())
        return entries
