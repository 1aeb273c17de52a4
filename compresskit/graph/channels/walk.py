"""Channel atoms: which channels of which tensors go together, found by walking through the graph on labels."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compresskit.graph.channels.kinds import Kind, kinds_of
from compresskit.graph.channels.labels import compact, spread
from compresskit.graph.channels.numbers import computed, counts, fixed
from compresskit.graph.channels.record import OUTPUT, Held, Norm, Record, Unknown
from compresskit.graph.channels.rules.call import Call
from compresskit.graph.channels.rules.calls import apply_call
from compresskit.graph.channels.rules.modules import apply_module
from compresskit.graph.format.table import shared_tensors
from compresskit.graph.operations import ELEMENTWISE, ELEMENTWISE_MODULES, EXECUTED, PRODUCTS, called
from compresskit.graph.shapes import Interpreter, node_shapes
from compresskit.shapes import Shape, shapes_of

_NOT_FOLLOWED = (IndexError, KeyError, RuntimeError, TypeError, ValueError)
# Arguments that rules look up by themselves: weights, and tables of indices.
_UNLABELLED: dict[str, tuple[int | str, ...]] = {
    "linear": (1, 2, "weight", "bias"),
    "embedding": (1, "weight"),
    "matmul": (1,),
    "addmm": (2,),
    "index_select": (2, "index"),
    "getitem": (1,),
    "relative_position_bias": (1,),
    "WindowAttention": (1, 2, 4, 5, "qkv_weight", "proj_weight", "qkv_bias", "proj_bias"),
}
_PASSING = EXECUTED | ELEMENTWISE | {"getitem", "relative_position_bias", "concat", "roll", "flip"}
_MOVING = EXECUTED | {"getitem", "contiguous", "long", "int", "to", "clone"}


@dataclass(frozen=True)
class Operand:
    """Of a product of activations. shape: with a batch of one. atoms: of size 1 along dimensions without channels."""

    shape: tuple[int, ...]
    atoms: Tensor

    def left(self, alive: Tensor) -> tuple[int, ...]:
        """The shape with the atoms that are alive, (n_atoms,) bool."""
        kept, sizes = alive[self.atoms], []
        for dim, size in enumerate(self.shape):
            others = [other for other in range(kept.ndim) if other != dim]
            varies = kept.shape[dim] > 1
            sizes.append(int((kept.amax(others) if others else kept).sum()) if varies else size)
        return tuple(sizes)


@dataclass(frozen=True)
class Channels:
    """An atom is one channel with every slot that it owns; atoms are numbered from 0.

    reads, writes: by convolution or linear layer, (in,) and (out,) atom of each input and output; a depthwise
    convolution, whose outputs are its inputs' channels, is in neither. A linear layer that is called with its weight as
    an argument, NAME.weight, is NAME. slots: by (name of a tensor, dimension), the atom of each index; a transposed
    convolution reads along dimension 0 of its weight and writes along 1. frozen: by atom, why it must stay. inputs:
    atoms of the network's input. sizes: by node that has sizes written into its arguments, the atoms of its results.
    selections: by node that selects channels, the atoms that it selects from. slices: by node that takes a range of
    channels, the place of that range among its indices, and the atoms that it takes from. numbers: by node that
    computes numbers from how many channels there are, those numbers; of several, None for those that count no channels.
    scales: of attention whose call leaves them to the positions of its heads.

    kinds: of each atom. "width": its channels go through a norm whose statistics run over channels, or it is the
    residual stream of such a net; "heads", "head-dim": whole heads of attention, or positions in them; "hidden": made
    by linear layers and read by the next ones through elementwise calls alone; "channels": all others.
    norms: by node, the norms whose statistics run over channels; channel_norms: the atoms along dimension 1 of others.
    sums: by node that sums over channels without weights (attention), by place among its arguments, the atoms of that
    argument, which broadcast over it. blinding: the slots that are zero where a network does not see what is dead: by
    which layers read. products: by node that multiplies activations with each other, these. mixed: by node of a linear
    layer over positions, what it reads.
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
    slices: dict[str, tuple[int, Tensor]]
    numbers: dict[str, Any]
    scales: dict[str, float]
    norms: dict[str, Norm]
    channel_norms: dict[str, Tensor]
    sums: dict[str, dict[int, Tensor]]
    blinding: tuple[tuple[str, int], ...]
    products: dict[str, tuple[Operand, ...]]
    mixed: dict[str, Operand]

    def places(self, alive: Tensor) -> dict[str, Tensor]:
        """By layer, the indices of its outputs that stay. alive: (n_atoms,) bool."""
        return {layer: alive.cpu()[atoms].nonzero(as_tuple=True)[0] for layer, atoms in self.writes.items()}


def find_channels(
    network: fx.GraphModule, input_shape: Shape, heads: Literal["positions", "whole"] = "positions"
) -> Channels:
    """The channel atoms of `network` for samples of `input_shape`.

    Convolutions and linear layers give fresh labels to their outputs; norms and elementwise operations pass labels on
    and unite those that meet; what only moves values is executed on the labels as they are. Grouped convolutions,
    chunks and reshapes that split channels unite position i of every part, so that parts stay equal. heads: what a
    reshape to heads of attention keeps apart, positions in heads or whole heads; where a product mixes positions, whole
    heads in any case. What is unknown, and the network's input and output, freeze the labels that they touch.
    """
    shapes, whole_at = node_shapes(network, input_shape), frozenset[str]()
    while True:
        record = Record(network, shapes, heads == "whole", whole_at)
        _Walk(network, record, input_shape).run(torch.empty(1))
        if record.stuck <= whole_at:
            break
        whole_at |= record.stuck
    record.settle_calls()
    record.settle_names(shared_tensors(network))
    atoms = record.labels.atoms()
    record.settle_tables(atoms)
    return Channels(
        int(atoms.max()) + 1 if len(atoms) else 0,
        kinds_of(network, record, atoms),
        {name: atoms[labels] for name, labels in record.reads.items()},
        {name: atoms[labels] for name, labels in record.writes.items()},
        {slot: atoms[labels] for slot, labels in record.slots.items()},
        record.labels.frozen(atoms),
        atoms[record.inputs],
        {name: [atoms[labels] for labels in results] for name, results in record.sizes.items()},
        {name: atoms[labels] for name, labels in record.selections.items()},
        {name: (dim, atoms[labels]) for name, (dim, labels) in record.slices.items()},
        {name: number for name, made in record.numbers.items() if (number := fixed(made)) is not None},
        record.scales,
        {name: Norm(norm.kind, norm.dim, atoms[norm.atoms]) for name, norm in record.norms.items()},
        {name: atoms[labels] for name, labels in record.channel_norms.items()},
        {name: {place: atoms[labels] for place, labels in found.items()} for name, found in record.sums.items()},
        tuple(record.blinding),
        {
            name: tuple(Operand(tuple(x.shape), atoms[compact(x)]) for x in operands)
            for name, operands in record.products.items()
        },
        {name: Operand(tuple(x.shape), atoms[compact(x)]) for name, x in record.mixed.items()},
    )


class _Walk(Interpreter):
    """Runs the graph on labels: its input and tensors get labels here, modules and calls have rules of their own."""

    def __init__(self, network: fx.GraphModule, record: Record, input_shape: Shape) -> None:
        super().__init__(network)
        self._record = record
        self._shapes = shapes_of(input_shape)
        self._several = len(self._shapes) > 1

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        match n.op:
            case "placeholder":
                return self._input(n)
            case "get_attr":
                tensor = self.fetch_attr(str(n.target))
                return Held(n, str(n.target), tensor) if isinstance(tensor, Tensor) else tensor
            case "output":
                self._record.freeze([x for x in args if isinstance(x, Tensor)], OUTPUT)
                return args[0]
        if called(n) == "getattr" and isinstance(args[0], Held) and args[1] != "shape":
            return getattr(args[0].tensor, args[1])
        if (table := self._moved_indices(n, args, kwargs)) is not None:
            return table
        args, kwargs = self._labelled(n, args, kwargs)
        found = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor | Unknown)]
        try:
            made = self._called(n, args, kwargs, found) if found else self._constant(n, args, kwargs)
        except _NOT_FOLLOWED:  # a call that is written in a way that its rule does not know
            touched = [x for x in found if isinstance(x, Tensor)]
            return self._record.stop(n, touched, f"{n.name}: labels cannot be followed through {called(n)}")
        if isinstance(made, torch.Size) or any(number.labels for number in counts(made)):
            self._record.numbers[n.name] = made
        return made

    def _called(self, n: fx.Node, args: Any, kwargs: Any, found: list[Any]) -> Any:
        record, touched = self._record, [x for x in found if isinstance(x, Tensor)]
        for number in counts((args, kwargs)):
            if number.samples and number.labels:
                record.freeze(list(number.labels), f"{n.name}: it computes with the number of channels and of samples")
        loose = self._loose(n, touched)
        kind = type(self._module_of(n)).__name__
        passes = kind in ELEMENTWISE_MODULES if n.op == "call_module" else called(n) in _PASSING
        if passes and any(loose) and all(free or x.numel() == 1 for x, free in zip(touched, loose, strict=True)):
            record.loose.add(n)
        if called(n) in PRODUCTS and len(touched) > 1:
            record.products[n.name] = touched
        call = Call(n, args, kwargs, touched, loose, lambda: self._run(n, args, kwargs))
        if n.op == "call_module":
            return apply_module(record, call, self.fetch_attr(str(n.target)))
        return apply_call(record, call)

    def _constant(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """A number, or a tensor that does not depend on the input."""
        made = self._run(n, args, kwargs)
        if isinstance(made, Tensor):
            return self._record.frozen(made.shape, f"{n.name}: constants have no channels")
        return made if called(n) == "getitem" else computed(made, (args, kwargs))

    def _run(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        return getattr(self, n.op)(n.target, args, kwargs)

    def _moved_indices(self, n: fx.Node, args: Any, kwargs: Any) -> Held | None:
        """A table of indices that a call only moves."""
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor | Unknown | Held)]
        if called(n) not in _MOVING or len(tensors) != 1 or not isinstance(args[0], Held):
            return None
        if args[0].tensor.is_floating_point() or args[0].tensor.dtype is torch.bool:
            return None
        return Held(n, "", self._run(n, (args[0].tensor, *args[1:]), kwargs))

    def _labelled(self, n: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        kind = type(self.fetch_attr(str(n.target))).__name__ if n.op == "call_module" else called(n)
        kept = _UNLABELLED.get(kind, ())

        def labels(key: int | str, value: Any) -> Any:
            if key in kept:
                return value
            return pytree.tree_map(lambda one: self._record.labelled(one) if isinstance(one, Held) else one, value)

        named = {key: labels(key, value) for key, value in kwargs.items()}
        return tuple(labels(place, value) for place, value in enumerate(args)), named

    def _loose(self, n: fx.Node, touched: list[Tensor]) -> list[bool]:
        values = [self.env[node] for node in n.all_input_nodes if node in self._record.loose]
        tables = [self._record.labelled(x) if isinstance(x, Held) else x for x in pytree.tree_leaves(values)]
        return [any(x is table for table in tables) for x in touched]

    def _input(self, n: fx.Node) -> Any:
        """Channels lie along dimension 1, or along the last one where linear layers read them."""
        last = all(type(self._module_of(user)).__name__ in ("Linear", "LayerNorm", "RMSNorm") for user in n.users)
        made = [self._input_of(shape, -1 if last else 1) for shape in self._shapes]
        self._record.inputs = torch.cat([labels for labels, _ in made])
        self._record.labels.freeze(self._record.inputs, "it is the network's input")
        spreads = tuple(labels for _, labels in made)
        return spreads if self._several else spreads[0]

    def _input_of(self, shape: tuple[int, ...], dim: int) -> tuple[Tensor, Tensor]:
        labels = self._record.labels.fresh((1, *shape)[dim])
        return labels, spread(labels, dim, (1, *shape))

    def _module_of(self, n: fx.Node) -> Any:
        return self.fetch_attr(str(n.target)) if n.op == "call_module" else None
