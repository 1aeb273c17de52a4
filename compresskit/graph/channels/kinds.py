"""What kind of channel an atom is, for those who choose which may go."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.record import Record
from compresskit.graph.operations import ELEMENTWISE, ELEMENTWISE_MODULES, called

Kind = Literal["channels", "hidden", "heads", "head-dim", "width"]
_PARTS = frozenset({"chunk", "split", "getitem", "flatten", "unflatten"})  # of gated units


def kinds_of(network: fx.GraphModule, record: Record, atoms: Tensor) -> tuple[Kind, ...]:
    """Of each atom, see `Channels.kinds`."""
    count = int(atoms.max()) + 1 if len(atoms) else 0
    found: list[Kind] = ["channels"] * count
    marked: list[tuple[Kind, Iterable[Tensor]]] = [
        ("hidden", [record.writes[name] for name in _hidden(network, record, atoms)]),
        ("head-dim", record.positions),
        ("heads", record.heads),
        ("width", record.width),
    ]
    makers = torch.zeros(count, dtype=torch.int64)
    for made in record.writes.values():
        makers[atoms[made].unique()] += 1
    marked.append(("width", [labels[makers[atoms[labels]] > 1] for labels in record.by_hand]))
    for kind, labels in marked:
        for atom in {int(atom) for one in labels for atom in atoms[one.flatten()].unique()}:
            found[atom] = kind
    return tuple(found)


def _hidden(network: fx.GraphModule, record: Record, atoms: Tensor) -> list[str]:
    """Linear layers whose outputs go through elementwise calls to linear layers alone, as do those of all layers that
    make the same channels, of the same inputs."""
    nodes = defaultdict[str, list[fx.Node]](list)
    for n in network.graph.nodes:
        if n.op == "call_module":
            nodes[n.target].append(n)
    makers: dict[int, list[str]] = {}
    for name, made in record.writes.items():
        for atom in set(atoms[made].tolist()):
            makers.setdefault(atom, []).append(name)
    ends_well = {name: name in nodes and all(_is_hidden(network, n) for n in nodes[name]) for name in record.writes}
    inputs = {name: atoms[read] for name, read in record.reads.items()}
    mixed = {
        name
        for own in makers.values()
        for name in own
        if not all(ends_well[other] and torch.equal(inputs[other], inputs[own[0]]) for other in own)
    }
    return [name for name in record.writes if name not in mixed]


def _is_hidden(network: fx.GraphModule, n: fx.Node) -> bool:
    if not _is_linear(network, n):
        return False
    seen, pending = {n}, [n]
    while pending:
        for user in set(pending.pop().users) - seen:
            if user.op == "call_module" and not _is_elementwise(network, user):
                if not _is_linear(network, user):
                    return False
            elif user.op == "call_module" or called(user) in ELEMENTWISE | _PARTS:
                seen.add(user)
                pending.append(user)
            else:
                return False
    return True


def _is_linear(network: fx.GraphModule, n: fx.Node) -> bool:
    module = network.get_submodule(str(n.target))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def _is_elementwise(network: fx.GraphModule, n: fx.Node) -> bool:
    return type(network.get_submodule(str(n.target))).__name__ in ELEMENTWISE_MODULES
