"""Channel atoms: which channels of which tensors go together, found by walking through the graph on labels."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compresskit.graph.channels.call_rules import Call, apply_call, item
from compresskit.graph.channels.labels import (
    spread,
)
from compresskit.graph.channels.module_rules import apply_module
from compresskit.graph.channels.record import Record, Unknown
from compresskit.graph.operations import (
    ELEMENTWISE,
    called,
)
from compresskit.graph.shapes import Interpreter, node_shapes

_NOT_FOLLOWED = (IndexError, KeyError, RuntimeError, TypeError, ValueError)

Kind = Literal["channels", "hidden", "heads", "head-dim", "width"]


@dataclass(frozen=True)
class Norm:
    """A node whose statistics run over channels. kind: of the norm. dim: of the value, along which channels lie.
    atoms: (channels,) along it."""

    kind: Literal["layer", "rms", "group"]
    dim: int
    atoms: Tensor


@dataclass(frozen=True)
class Channels:
    """An atom is one channel with every slot that it owns; atoms are numbered from 0.

    reads, writes: by convolution or linear layer, (in,) and (out,) atom of each input and output; a depthwise
    convolution, whose outputs are its inputs' channels, is in neither. slots: by (name of a tensor, dimension), the
    atom of each index. frozen: by atom, why it must stay. inputs: atoms of the network's input. sizes: by node that has
    sizes written into its arguments, the atoms of its results. selections: by node that selects channels, the atoms
    that it selects from.

    kinds: of each atom. "width": its channels go through a norm whose statistics run over channels, or it is the
    residual stream of such a net; "heads", "head-dim": whole heads of attention, or positions in them; "hidden": made
    by linear layers and read by the next ones through elementwise calls alone; "channels": all others.
    norms: by node, the norms whose statistics run over channels. sums: by node that sums over channels without weights
    (attention), by place among its arguments, the atoms of that argument, which broadcast over it. blinding: the slots
    that are zero where a network does not see what is dead: those by which layers read.
    """

    n_atoms: int
    kinds: tuple[Kind, ...]
    reads: dict[str, Tensor]
    writes: dict[str, Tensor]
    slots: dict[tuple[str, int], Tensor]
    frozen: dict[int, str]
    inputs: Tensor
    sizes: dict[str, list[Tensor]]
    selections: dict[str, Tensor]
    norms: dict[str, Norm]
    sums: dict[str, dict[int, Tensor]]
    blinding: tuple[tuple[str, int], ...]


def find_channels(
    network: fx.GraphModule, input_shape: tuple[int, ...], heads: Literal["positions", "whole"] = "positions"
) -> Channels:
    """The channel atoms of `network` for samples of `input_shape`.

    Convolutions and linear layers give fresh labels to their outputs; norms and elementwise operations pass labels on
    and unite those that meet; what only moves values is executed on the labels as they are. Grouped convolutions,
    chunks and reshapes that split channels unite position i of every part, so that parts stay equal. What is unknown,
    and the network's input and output, freeze the labels that they touch.
    """
    record = Record(network, node_shapes(network, input_shape))
    _Walk(network, record).run(torch.empty(1, *input_shape))
    atoms = record.labels.atoms()
    n_atoms = int(atoms.max()) + 1 if len(atoms) else 0
    kinds: list[Kind] = ["channels"] * n_atoms
    return Channels(
        n_atoms,
        tuple(kinds),
        {name: atoms[labels] for name, labels in record.reads.items()},
        {name: atoms[labels] for name, labels in record.writes.items()},
        {slot: atoms[labels] for slot, labels in record.slots.items()},
        record.labels.frozen(atoms),
        atoms[record.inputs],
        {name: [atoms[labels] for labels in results] for name, results in record.sizes.items()},
        {name: atoms[labels] for name, labels in record.selections.items()},
        {},
        {},
        tuple((f"{name}.weight", 1) for name in record.reads),
    )


class _Walk(Interpreter):
    """Runs the graph on labels: its input and tensors get labels here, modules and calls have rules of their own."""

    def __init__(self, network: fx.GraphModule, record: Record) -> None:
        super().__init__(network)
        self._record = record

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        match n.op:
            case "placeholder":
                return self._input(n)
            case "get_attr":
                return self._parameter(n)
            case "output":
                self._record.freeze([args[0]], "it is the network's output")
                return args[0]
        found = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor | Unknown)]
        touched = [x for x in found if isinstance(x, Tensor)]
        call = Call(n, args, kwargs, touched, lambda: super(_Walk, self).run_node(n))
        if not found:
            return item(self._record, call) if called(n) == "getitem" else self._constant(n, call.run())
        try:
            if n.op == "call_module":
                return apply_module(self._record, n, self.fetch_attr(str(n.target)), touched)
            return apply_call(self._record, call)
        except _NOT_FOLLOWED:  # a call that is written in a way that its rule does not know
            return self._record.stop(n, touched, f"{n.name}: labels cannot be followed through {called(n)}")

    def _constant(self, n: fx.Node, made: Any) -> Any:
        """A number, or a tensor that does not depend on the input."""
        if not isinstance(made, Tensor):
            return made
        return self._record.frozen(made.shape, f"{n.name}: constants have no channels")

    def _input(self, n: fx.Node) -> Tensor:
        record, shape = self._record, self._record.shapes[n.name]
        record.inputs = record.labels.fresh(shape[1])
        record.labels.freeze(record.inputs, "it is the network's input")
        return spread(record.inputs, 1, shape)

    def _parameter(self, n: fx.Node) -> Any:
        """Labels of a tensor that calls read, one for each entry along the one dimension that it has."""
        record, tensor = self._record, self.fetch_attr(str(n.target))
        if not isinstance(tensor, Tensor) or all(called(user) == "index_select" for user in n.users):
            return tensor  # the indices of a selection are no channels
        wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        indices = not tensor.is_floating_point() and any(called(user) not in ELEMENTWISE for user in n.users)
        if len(wide) != 1 or indices or record.calls[n.target] > 1 or str(n.target) in record.shared:
            return record.frozen(tensor.shape, f"{n.target}: a tensor of {len(wide)} dimensions, of indices, or shared")
        labels = record.labels.fresh(tensor.shape[wide[0]])
        record.slots[str(n.target), wide[0]] = labels
        return spread(labels, wide[0], tensor.shape)
