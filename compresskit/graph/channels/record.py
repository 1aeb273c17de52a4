"""What a walk over labels writes down: who reads, writes and owns which channels, and what must stay."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from compresskit.graph.chains import closure
from compresskit.graph.channels.labels import Labels, spread, unite_rows
from compresskit.graph.format.table import named_tensors, shared_names
from compresskit.graph.operations import ELEMENTWISE, EXECUTED, PRODUCTS, called

_MEETING = ELEMENTWISE | PRODUCTS | {"layer_norm", "rms_norm", "relative_position_bias", "getattr", "size"}
_ENTRIES = 2**19  # that a parameter may have to be given a label for each

OUTPUT = "it is the network's output"  # why channels stay


class Unknown:
    """Stands for a result that is no tensor, of an operation that nothing is known of."""


@dataclass(frozen=True)
class Held:
    """A tensor of the network that a call reads, before anything asks for its labels. node: that reads it. name: ""
    where a call has moved it."""

    node: fx.Node
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Norm:
    """Of a node whose statistics run over channels. kind: of the norm; "statistic" where a network takes a mean, a
    variance or a maximum by itself. dim: of the value, along which channels lie; counted from the end for kinds "layer"
    and "rms". atoms: (channels,) those along it."""

    kind: Literal["layer", "rms", "group", "statistic"]
    dim: int
    atoms: Tensor


class Slots(dict[tuple[str, int], Tensor]):
    """Labels by tensor and dimension; of a tensor that is used several times they are one channel each.

    times: how often each slot was given labels.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self._labels = labels
        self.times = Counter[tuple[str, int]]()

    def __setitem__(self, slot: tuple[str, int], labels: Tensor) -> None:
        self.times[slot] += 1
        if slot in self:
            self._labels.unite(self[slot], labels)
        super().__setitem__(slot, labels)


class Record:
    """The labels of one network and where they stand; `Channels` has the same, with atoms in the place of labels.

        shapes: of the values of nodes, by name. whole: whether a reshape to heads keeps heads apart, else positions in
    them; whole_at: where it does so in any case. splits: those reshapes; stuck: those whose positions a product mixes.
    of_samples: nodes that the input reaches, whose first dimension is that of samples. calls: how often a module or
    tensor is used. shared: names of tensors that have several. own: by module, the names of its tensors and of those
    below it. in_heads: labels of reshapes to heads. heads, positions: labels that attention keeps, or multiplies.
    width, by_hand: labels that norms, or statistics of the network's own, run over. tables: parameters with a label
    for each entry; loose: nodes whose labels come from those alone, so that nothing is known of their dimensions yet.
    numbers: by node, what it computes from sizes. products: by node that multiplies activations, their labels. mixed:
    by node of a linear layer over positions, the labels that it reads.
    """

    def __init__(
        self, network: fx.GraphModule, shapes: dict[str, tuple[int, ...]], whole: bool, whole_at: frozenset[str]
    ) -> None:
        self.labels = Labels()
        self.reads: dict[str, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.slots = Slots(self.labels)
        self.blinding: list[tuple[str, int]] = []
        self.sizes: dict[str, list[Tensor]] = {}
        self.selections: dict[str, Tensor] = {}
        self.slices: dict[str, tuple[int, Tensor]] = {}
        self.norms: dict[str, Norm] = {}
        self.channel_norms: dict[str, Tensor] = {}
        self.sums: dict[str, dict[int, Tensor]] = {}
        self.products: dict[str, list[Tensor]] = {}
        self.mixed: dict[str, Tensor] = {}
        self.scales: dict[str, float] = {}
        self.in_heads: list[Tensor] = []
        self.heads: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.width: list[Tensor] = []
        self.by_hand: list[Tensor] = []
        self.tables: dict[str, Tensor] = {}
        self.loose: set[fx.Node] = set()
        self.splits: set[fx.Node] = set()
        self.stuck: set[str] = set()
        self.numbers: dict[str, Any] = {}
        self.inputs = torch.empty(0, dtype=torch.int64)
        self.shapes = shapes
        self.whole = whole
        self.whole_at = whole_at
        inputs = [n for n in network.graph.nodes if n.op == "placeholder"]
        self.of_samples = {n for one in inputs for n in closure(one, lambda node: node.users)}
        self.calls = Counter(n.target for n in network.graph.nodes if _is_call(n))
        self.shared = shared_names(network)
        self.own = _by_module(name for name, _ in named_tensors(network))
        self._held: dict[str, Tensor] = {}

    def fresh_outputs(self, n: fx.Node, layer: Any, read: Tensor, dim: int) -> Tensor:
        """New labels for what a layer makes along `dim`, of inputs with the labels `read`."""
        name, groups = str(n.target), getattr(layer, "groups", 1)
        made = self.labels.fresh(len(layer.weight))
        if groups > 1:
            unite_rows(self.labels, made.view(groups, -1))
        self.note_layer(name, read, made, layer.bias is not None, groups)
        return spread(made, dim, self.shapes[n.name])

    def note_layer(self, name: str, read: Tensor, made: Tensor, bias: bool, groups: int = 1) -> None:
        """A weight (out, in / groups, ...) and the bias of `name`."""
        self.reads[name], self.writes[name] = read, made
        self.note_outputs(name, made, bias)
        self.note_inputs(f"{name}.weight", 1, read[: len(read) // groups])

    def note_outputs(self, name: str, outputs: Tensor, bias: bool) -> None:
        """The labels own a slot each of the layer's filters and biases."""
        self.slots[f"{name}.weight", 0] = outputs
        if bias:
            self.slots[f"{name}.bias", 0] = outputs

    def note_inputs(self, tensor: str, dim: int, read: Tensor) -> None:
        self.slots[tensor, dim] = read
        self.blinding.append((tensor, dim))

    def labelled(self, held: Held) -> Tensor:
        """Labels of a tensor that calls read: one for each index along the one dimension that it has; of a tensor with
        several, one for each entry, until it is known along which one channels lie."""
        tensor, name = held.tensor, held.name
        if name in self.tables:
            self.loose.add(held.node)
        if name and name in self._held:
            return self._held[name]
        wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        told = bool(name) and name not in self.shared and not self.calls[name.rpartition(".")[0]]
        indices = not tensor.is_floating_point() and any(called(user) not in ELEMENTWISE for user in held.node.users)
        if told and len(wide) == 1 and not indices:
            labels = self.slots[name, wide[0]] = self.labels.fresh(tensor.shape[wide[0]])
            made = spread(labels, wide[0], tensor.shape)
        elif told and wide and tensor.is_floating_point() and tensor.numel() <= _ENTRIES and _meets(held.node):
            made = self.tables[name] = self.labels.fresh(tensor.numel()).view(tensor.shape)
            self.loose.add(held.node)
        else:
            reason = f"a tensor of {len(wide)} dimensions, of indices, or shared"
            made = self.frozen(tensor.shape, f"{name or held.node.name}: {reason}")
        self._held[name] = made
        return made

    def settle_calls(self) -> None:
        """What a module called several times reads as channels in some of its calls alone must stay."""
        for slot, labels in self.slots.items():
            path = slot[0].rpartition(".")[0]
            if self.slots.times[slot] < self.calls[path]:
                self.labels.freeze(labels, f"{path}: it is called {self.calls[path]} times, and not always on channels")

    def settle_tables(self, atoms: Tensor) -> None:
        """The one dimension along which the atoms of a parameter vary is a slot; where they vary along several, they
        must stay."""
        for name, labels in self.tables.items():
            own = atoms[labels]
            varies = [dim for dim in range(own.ndim) if not bool((own == own.narrow(dim, 0, 1)).all())]
            if len(varies) == 1:
                self.slots[name, varies[0]] = labels.movedim(varies[0], 0).flatten(1)[:, 0]
            else:
                self.freeze([labels], f"{name}: its entries are channels along {len(varies)} dimensions, not one")

    def settle_names(self, names: Iterable[list[str]]) -> None:
        """A tensor of several names loses the same under each. names: those of each such tensor."""
        for own in names:
            used = [name for name in own if self.calls[name] or self.calls[name.rpartition(".")[0]]]
            for dim in {dim for name, dim in self.slots if name in own}:
                found = [self.slots[name, dim] for name in used if (name, dim) in self.slots]
                if len(found) < len(used):
                    self.freeze(found, f"{own[0]}: it is {own[1]} as well, and not as channels")
                elif len(found) > 1:
                    unite_rows(self.labels, found)

    def stop(self, n: fx.Node, touched: list[Tensor], reason: str) -> Tensor | Unknown:
        """Freezes what a node touches; its result is frozen, too."""
        self.freeze(touched, reason)
        return self.frozen(self.shapes[n.name], reason) if n.name in self.shapes else Unknown()

    def freeze(self, touched: list[Tensor], reason: str) -> None:
        for labels in touched:
            if not labels.is_floating_point():
                self.labels.freeze(labels, reason)

    def frozen(self, shape: tuple[int, ...], reason: str) -> Tensor:
        """A new label that must stay, everywhere."""
        label = self.labels.fresh(1)
        self.labels.freeze(label, reason)
        return label.squeeze().expand(tuple(shape))  # a value of no dimensions has no room for one


def _meets(n: fx.Node) -> bool:
    """Whether all that becomes of a tensor, moved as it may be, meets activations entry by entry or in a product."""
    seen, pending = {n}, [n]
    while pending:
        for user in set(pending.pop().users) - seen:
            seen.add(user)
            if called(user) in EXECUTED or called(user) == "getitem":
                pending.append(user)
            elif called(user) not in _MEETING and user.op != "call_module":
                return False
    return True


def _is_call(n: fx.Node) -> bool:
    """Whether a node calls a module, or reads a tensor for more than its type and device."""
    if n.op == "get_attr":
        return any(called(user) != "getattr" or user.args[1] == "shape" for user in n.users)
    return n.op == "call_module"


def _by_module(tensors: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        path = name
        while "." in path:
            path = path.rpartition(".")[0]
            found[path].append(name)
    return found
