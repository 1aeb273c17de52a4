"""What a walk over labels writes down: who reads, writes and owns which channels, and what must stay."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.graph.channels.labels import Labels, spread, unite_rows
from compresskit.graph.format.table import named_tensors, shared_names


class Unknown:
    """Stands for a result that is no tensor, of an operation that nothing is known of."""


class Record:
    """The labels of one network and where they stand; `Channels` has the same, with atoms in the place of labels.

    shapes: of the values of nodes, by name. measured: by node that gives sizes, the labels that vary along them, None
    where none do. calls: how often a module or tensor is used. shared: names of tensors that have several. own: by
    module, the names of its tensors and of those below it.
    """

    def __init__(self, network: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> None:
        self.labels = Labels()
        self.reads: dict[str, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.slots: dict[tuple[str, int], Tensor] = {}
        self.sizes: dict[str, list[Tensor]] = {}
        self.selections: dict[str, Tensor] = {}
        self.inputs = torch.empty(0, dtype=torch.int64)
        self.measured: dict[fx.Node, Tensor | None] = {}
        self.shapes = shapes
        self.calls = Counter(n.target for n in network.graph.nodes if n.op in ("call_module", "get_attr"))
        self.shared = shared_names(network)
        self.own = _by_module(name for name, _ in named_tensors(network))

    def fresh_outputs(self, n: fx.Node, layer: Any, read: Tensor, dim: int) -> Tensor:
        """New labels for what a layer makes along `dim`, of inputs with the labels `read`."""
        name, groups = str(n.target), getattr(layer, "groups", 1)
        made = self.labels.fresh(len(layer.weight))
        if groups > 1:
            unite_rows(self.labels, made.view(groups, -1))
        self.reads[name], self.writes[name] = read, made
        self.note_outputs(name, layer, made)
        self.slots[f"{name}.weight", 1] = read[: layer.weight.shape[1]]
        return spread(made, dim, self.shapes[n.name])

    def note_outputs(self, name: str, layer: Any, outputs: Tensor) -> None:
        """The labels own a slot each of the layer's filters and biases."""
        self.slots[f"{name}.weight", 0] = outputs
        if layer.bias is not None:
            self.slots[f"{name}.bias", 0] = outputs

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


def _by_module(tensors: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        path = name
        while "." in path:
            path = path.rpartition(".")[0]
            found[path].append(name)
    return found
