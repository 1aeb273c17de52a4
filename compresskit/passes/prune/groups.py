"""Groups of channels that are pruned together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.channels.walk import Channels
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
