"""Groups of channels that are pruned together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.channels.kinds import Kind
from compresskit.graph.channels.walk import Channels
from compresskit.graph.operations import PACKED, TRANSPOSED
from compresskit.graph.selectors import KINDS, Layer, pick, select

_KINDS = {**KINDS, "@transposed": TRANSPOSED}  # of layers that selectors mean here
_SEPARATE: tuple[Kind, ...] = ("heads", "head-dim")  # query and key, and value: each must keep some


@dataclass(frozen=True)
class Group:
    """Channels of one kind that layers make together: of one layer, or of all that write to a residual sum.

    layers: that make them. atoms: (n,) those that may go; others of these layers stay. number: of several groups with
    the same layers and kind.
    """

    layers: tuple[str, ...]
    atoms: Tensor
    kind: Kind = "channels"
    number: int = 1

    @property
    def name(self) -> str:
        made_by = self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} and {len(self.layers) - 1} more"
        kind = "" if self.kind == "channels" else f" ({self.kind})"
        return made_by + kind + (f" {self.number}" if self.number > 1 else "")


def find_groups(
    network: fx.GraphModule, channels: Channels, selectors: Sequence[str], kinds: Sequence[Kind] | None = None
) -> tuple[list[Group], dict[str, str]]:
    """Groups in the order of the network, and why layers are left whole.

    kinds: that may go; default: all. Raises RecipeError for a selector that means nothing, and where no channel at all
    may go.
    """
    wanted, known = _wanted(network, channels, selectors), _wanted(network, channels, ["re:.*"])
    groups: list[Group] = []
    skipped: dict[str, str] = {}
    there: set[Kind] = set()
    for layers, atoms in _together(channels):
        free = torch.tensor([atom for atom in atoms.tolist() if atom not in channels.frozen], dtype=torch.int64)
        own = [layer for layer in layers if layer in wanted]
        if left_out := [layer for layer in layers if layer in known and layer not in wanted]:
            skipped |= dict.fromkeys(own, f"its channels are those of {left_out[0]}, which no selector names")
        elif not len(free):
            skipped |= dict.fromkeys(layers, channels.frozen[int(atoms[0])])
        else:
            for group in _by_kind(channels, layers, free):
                there.add(group.kind)
                if kinds is None or group.kind in kinds:
                    groups.append(group)
                else:
                    skipped[group.name] = f"prune.groups does not name {group.kind}"
    for layer in sorted(wanted - channels.writes.keys() - {name for group in groups for name in group.layers}):
        skipped[layer] = "its channels are those that it reads (depthwise), or calls read its weights, too"
    if not groups:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(skipped.items())[:3])
        if there:
            raise RecipeError(
                f"prune.groups: {', '.join(kinds or ())} was given, and what can go here is {', '.join(sorted(there))}"
            )
        raise RecipeError(f"prune: no channel can go ({reasons}); see `show layers` and prune.layers")
    return _numbered(groups), skipped


def _wanted(network: fx.GraphModule, channels: Channels, selectors: Sequence[str]) -> set[str]:
    """Layers that any selector means: convolutions, linear layers, and those within attention as one module."""
    called = _layers(network)
    inner = {name: Layer("@linear") for name in channels.writes if name not in called}
    if not inner:
        return set(select(network, selectors, _KINDS))
    return set(pick(called | inner, selectors, tuple(_KINDS)))


def _layers(network: fx.GraphModule) -> dict[str, Layer]:
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    modules = {name: network.get_submodule(name) for name in called}
    return {
        name: Layer(kind, getattr(module, "kernel_size", ()))
        for name, module in modules.items()
        for kind, types in _KINDS.items()
        if isinstance(module, types)
    }


def _by_kind(channels: Channels, layers: Sequence[str], atoms: Tensor) -> Iterator[Group]:
    """The atoms by kind; in attention those of query and key apart from those of value where nothing ties them."""
    found: dict[tuple[Kind, tuple[object, ...]], list[int]] = {}
    places = _places(channels) if any(channels.kinds[atom] in _SEPARATE for atom in atoms.tolist()) else {}
    for atom in atoms.tolist():
        kind = channels.kinds[atom]
        found.setdefault((kind, places.get(atom, ()) if kind in _SEPARATE else ()), []).append(atom)
    for (kind, _), own in found.items():
        yield Group(tuple(layers), torch.tensor(own, dtype=torch.int64), kind)


def _places(channels: Channels) -> dict[int, tuple[object, ...]]:
    """By atom, the tensors and sums that it has a place in."""
    places: dict[int, list[object]] = {}
    for slot, atoms in channels.slots.items():
        for atom in atoms.unique().tolist():
            places.setdefault(atom, []).append(slot)
    for name, arguments in channels.sums.items():
        for atom in {atom for atoms in arguments.values() for atom in atoms.unique().tolist()}:
            places.setdefault(atom, []).append(name)
    return {atom: tuple(own) for atom, own in places.items()}


def _numbered(groups: list[Group]) -> list[Group]:
    seen: Counter[str] = Counter()
    found = []
    for group in groups:
        seen[group.name] += 1
        found.append(replace(group, number=seen[group.name]))
    return found


def _together(channels: Channels) -> list[tuple[list[str], Tensor]]:
    """Layers that make the same channels, directly or through others, and their atoms, (n,) in order; behind them the
    channels that no layer makes but a part of one: query, key and value within attention as one module."""
    owner: dict[int, list[str]] = {}
    for layer, atoms in channels.writes.items():
        members = [layer]
        for found in {id(owner[atom]): owner[atom] for atom in atoms.tolist() if atom in owner}.values():
            members = found + members
        for member in members:
            owner |= dict.fromkeys(channels.writes[member].tolist(), members)
    order = {layer: place for place, layer in enumerate(channels.writes)}
    unique = {id(members): members for members in owner.values()}
    ordered = sorted(unique.values(), key=lambda members: min(order[layer] for layer in members))
    made = [(members, torch.cat([channels.writes[layer] for layer in members]).unique()) for members in ordered]
    for name, dim in channels.slots:
        if dim == 0 and name.endswith(PACKED):
            atoms = channels.slots[name, dim].unique()
            rest = [atom for atom in atoms.tolist() if atom not in owner and atom not in channels.frozen]
            owner |= dict.fromkeys(rest, [name])
            made += [([name.removesuffix("_weight")], torch.tensor(rest, dtype=torch.int64))] if rest else []
    return made
