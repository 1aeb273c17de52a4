"""Channel atoms: which channels of which tensors go together, found by walking through the graph on labels."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compresskit.graph.grouped import ChannelPermutation
from compresskit.graph.label_rules import (
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    EXECUTED,
    NORMS,
    REDUCING,
    SPATIAL,
    SPATIAL_MODULES,
    called,
)
from compresskit.graph.labels import Labels, along, broadcast, compact, concatenated, repeats, spread, unite_rows
from compresskit.graph.shapes import Interpreter, node_shapes
from compresskit.graph.table import named_tensors, shared_names

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Channels:
    """An atom is one channel with every slot that it owns; atoms are numbered from 0.

    reads, writes: by convolution or linear layer, (in,) and (out,) atom of each input and output; a depthwise
    convolution, whose outputs are its inputs' channels, is in neither. slots: by (name of a tensor, dimension), the
    atom of each index. frozen: by atom, why it must stay. inputs: atoms of the network's input. sizes: by node that has
    sizes written into its arguments, the atoms of its results. selections: by node that selects channels, the atoms
    that it selects from.
    """

    n_atoms: int
    reads: dict[str, Tensor]
    writes: dict[str, Tensor]
    slots: dict[tuple[str, int], Tensor]
    frozen: dict[int, str]
    inputs: Tensor
    sizes: dict[str, list[Tensor]]
    selections: dict[str, Tensor]


def find_channels(network: fx.GraphModule, input_shape: tuple[int, ...]) -> Channels:
    """The channel atoms of `network` for samples of `input_shape`.

    Convolutions and linear layers give fresh labels to their outputs; norms and elementwise operations pass labels on
    and unite those that meet; what only moves values is executed on the labels as they are. Grouped convolutions,
    chunks and reshapes that split channels unite position i of every part, so that parts stay equal. What is unknown,
    and the network's input and output, freeze the labels that they touch.
    """
    walk = _Walk(network, node_shapes(network, input_shape))
    walk.run(torch.empty(1, *input_shape))
    atoms = walk.labels.atoms()
    return Channels(
        int(atoms.max()) + 1 if len(atoms) else 0,
        {name: atoms[labels] for name, labels in walk.reads.items()},
        {name: atoms[labels] for name, labels in walk.writes.items()},
        {slot: atoms[labels] for slot, labels in walk.slots.items()},
        walk.labels.frozen(atoms),
        atoms[walk.inputs],
        {name: [atoms[labels] for labels in results] for name, results in walk.sizes.items()},
        {name: atoms[labels] for name, labels in walk.selections.items()},
    )


class _Unknown:
    """Stands for a result that is no tensor, of an operation that nothing is known of."""


class _Walk(Interpreter):
    def __init__(self, network: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(network)
        self.labels = Labels()
        self.reads: dict[str, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.slots: dict[tuple[str, int], Tensor] = {}
        self.sizes: dict[str, list[Tensor]] = {}
        self.selections: dict[str, Tensor] = {}
        self.inputs = torch.empty(0, dtype=torch.int64)
        self._measured: dict[fx.Node, Tensor | None] = {}  # by node that gives sizes, what varies along them
        self._shapes = shapes
        self._calls = Counter(n.target for n in network.graph.nodes if n.op in ("call_module", "get_attr"))
        self._shared = shared_names(network)
        self._own = _by_module(name for name, _ in named_tensors(network))

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        match n.op:
            case "placeholder":
                return self._input(n)
            case "get_attr":
                return self._parameter(n)
            case "output":
                self._freeze([args[0]], "it is the network's output")
                return args[0]
        found = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor | _Unknown)]
        if not found and called(n) == "getitem":
            return self._item(n, args)
        if not found:
            made = super().run_node(n)  # a number, or a tensor of constants
            return (
                self._frozen(made.shape, f"{n.name}: constants have no channels") if isinstance(made, Tensor) else made
            )
        touched = [x for x in found if isinstance(x, Tensor)]
        if n.op == "call_module":
            return self._module(n, self.fetch_attr(str(n.target)), touched)
        return self._call(n, args, kwargs, touched)

    def _input(self, n: fx.Node) -> Tensor:
        shape = self._shapes[n.name]
        self.inputs = self.labels.fresh(shape[1])
        self.labels.freeze(self.inputs, "it is the network's input")
        return spread(self.inputs, 1, shape)

    def _parameter(self, n: fx.Node) -> Any:
        """Labels of a tensor that calls read, one for each entry along the one dimension that it has."""
        tensor = self.fetch_attr(str(n.target))
        if not isinstance(tensor, Tensor) or all(called(user) == "index_select" for user in n.users):
            return tensor  # the indices of a selection are no channels
        wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        indices = not tensor.is_floating_point() and any(called(user) not in ELEMENTWISE for user in n.users)
        if len(wide) != 1 or indices or self._calls[n.target] > 1 or str(n.target) in self._shared:
            return self._frozen(tensor.shape, f"{n.target}: a tensor of {len(wide)} dimensions, of indices, or shared")
        labels = self.labels.fresh(tensor.shape[wide[0]])
        self.slots[str(n.target), wide[0]] = labels
        return spread(labels, wide[0], tensor.shape)

    def _module(self, n: fx.Node, module: nn.Module, touched: list[Tensor]) -> Any:
        name, kind, x = str(n.target), type(module).__name__, touched[0]
        one_slope = isinstance(module, nn.PReLU) and module.num_parameters == 1  # of all channels: may be shared
        own = [] if one_slope else self._own[name]
        read_by_calls = any(self._calls[tensor] for tensor in own)
        if own and (self._calls[n.target] > 1 or read_by_calls or self._shared.intersection(own)):
            return self._stop(n, touched, f"{name}: its weights are used more than once")
        if isinstance(module, nn.Linear):
            return self._linear(n, module, x)
        if isinstance(module, _CONVOLUTIONS):
            return self._convolution(n, module, x)
        if isinstance(module, NORMS) or (isinstance(module, nn.PReLU) and not one_slope):
            return self._per_channel(n, own, x)
        if kind in ELEMENTWISE_MODULES:
            return x
        if kind in SPATIAL_MODULES:
            return self._spatial(n, x)
        if kind in ("Flatten", "Unflatten"):
            return self._moved(n, module(x), touched)
        if isinstance(module, nn.ChannelShuffle) and (channels := along(x, 1)) is not None:
            shares = unite_rows(self.labels, channels.view(module.groups, -1))
            return spread(shares.repeat_interleave(module.groups), 1, x.shape)
        once = self._calls[n.target] == 1
        if isinstance(module, ChannelPermutation) and once and (channels := along(x, module.dim)) is not None:
            self.selections[n.name] = channels
            return spread(channels[module.indices().cpu()], module.dim % x.ndim, x.shape)
        return self._stop(n, touched, f"{name}: {kind} mixes channels, or is not known")

    def _linear(self, n: fx.Node, layer: nn.Linear, x: Tensor) -> Tensor | _Unknown:
        read = along(x, -1)
        if read is None:
            return self._stop(n, [x], f"{n.target}: its inputs are other channels at other positions")
        return self._fresh_outputs(n, layer, read, -1)

    def _convolution(self, n: fx.Node, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor | _Unknown:
        read = along(x, 1)
        if read is None:
            return self._stop(n, [x], f"{n.target}: its inputs are other channels at other positions")
        if layer.groups == layer.in_channels > 1:  # depthwise
            passed = read.repeat_interleave(layer.out_channels // layer.in_channels)
            self._note(str(n.target), layer, passed)
            return spread(passed, 1, self._shapes[n.name])
        if layer.groups > 1:
            unite_rows(self.labels, read.view(layer.groups, -1))
        return self._fresh_outputs(n, layer, read, 1)

    def _fresh_outputs(self, n: fx.Node, layer: Any, read: Tensor, dim: int) -> Tensor:
        name, groups = str(n.target), getattr(layer, "groups", 1)
        made = self.labels.fresh(len(layer.weight))
        if groups > 1:
            unite_rows(self.labels, made.view(groups, -1))
        self.reads[name], self.writes[name] = read, made
        self._note(name, layer, made)
        self.slots[f"{name}.weight", 1] = read[: layer.weight.shape[1]]
        return spread(made, dim, self._shapes[n.name])

    def _note(self, name: str, layer: Any, outputs: Tensor) -> None:
        self.slots[f"{name}.weight", 0] = outputs
        if layer.bias is not None:
            self.slots[f"{name}.bias", 0] = outputs

    def _per_channel(self, n: fx.Node, tensors: list[str], x: Tensor) -> Tensor | _Unknown:
        channels = along(x, 1)
        if channels is None:
            return self._stop(n, [x], f"{n.target}: its inputs are other channels at other positions")
        for name in tensors:
            if not name.endswith("num_batches_tracked"):
                self.slots[name, 0] = channels
        return x

    def _call(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Tensor]) -> Any:
        name = called(n)
        if name in ("size", "dim", "getattr", "numel") and found:
            along_one = n.args[1] if name == "size" and len(n.args) > 1 else n.kwargs.get("dim")
            self._measured[n] = compact(found[0]) if along_one is None else _varying(found[0], along_one)
            return super().run_node(n)
        if name in ("to", "type_as"):  # of another tensor, the type alone is read
            return args[0]
        if name in ELEMENTWISE:
            self._freeze_measured(n)
            return self._elementwise(n, found)
        if name == "index_select":
            return self._selected(n, args, kwargs)
        if name == "getitem":
            return self._item(n, args)
        if name == "view":  # labels that repeat have no memory of their own to be viewed
            return self._moved(n, args[0].reshape(*args[1:], **kwargs), found)
        if name in ("cat", "concat") and args and not kwargs.keys() - {"dim"}:
            return self._moved(n, concatenated(args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)), found)
        if name in EXECUTED:
            return self._moved(n, super().run_node(n), found)
        if name in SPATIAL:
            return self._spatial(n, args[0])
        if name in REDUCING:
            return self._reduced(n, args, kwargs)
        return self._stop(n, found, f"{n.name}: {name} mixes channels, or is not known")

    def _elementwise(self, n: fx.Node, found: list[Tensor]) -> Tensor:
        """Unites what meets. A single channel that is broadcast over others is none of them, and stays."""
        shape = broadcast(found)
        if len(found) > 1:
            narrow = [compact(x) for x in found]
            varying = broadcast(narrow)
            single = [y.numel() == 1 and _is_broadcast(x.shape, varying) for x, y in zip(found, narrow, strict=True)]
            for x in (x for x, alone in zip(found, single, strict=True) if alone):
                self._freeze([x], f"{n.name}: it is broadcast over channels")
            found = [x for x, alone in zip(found, single, strict=True) if not alone]
        first, *others = (x.expand(shape) for x in found)
        for other in others:
            self.labels.unite(first, other)
        return first

    def _moved(self, n: fx.Node, result: Any, touched: list[Tensor]) -> Any:
        """What only moves values. Equal parts of a split, and rows where a reshape splits channels, lose alike."""
        leaves, structure = pytree.tree_flatten(result)
        results = [compact(x) for x in leaves]
        self.sizes[n.name] = results
        moved = [self._rectangle(labels) for labels in results]
        if isinstance(result, tuple | list):
            if len({x.shape for x in leaves}) == 1:
                moved = [unite_rows(self.labels, moved)] * len(moved)
            elif _cannot_be_told(n, leaves, results):
                self._freeze(touched, f"{n.name}: the parts that it splits channels into are unequal")
        return pytree.tree_unflatten([x.expand(y.shape) for x, y in zip(moved, leaves, strict=True)], structure)

    def _rectangle(self, labels: Tensor) -> Tensor:
        """The same where labels vary along one dimension only; else all but the longest lose alike, since what stays
        must be a rectangle."""
        wide = [dim for dim, size in enumerate(labels.shape) if size > 1]
        longest = max(reversed(wide), key=lambda dim: labels.shape[dim], default=None)
        for dim in wide:
            if dim != longest:
                labels = unite_rows(self.labels, labels.unbind(dim)).unsqueeze(dim)
        return labels

    def _freeze_measured(self, n: fx.Node) -> None:
        """A number made of the size of an activation would change with its channels, and what is computed with it."""
        pending = [node for node in n.all_input_nodes if node.name not in self._shapes]
        while pending:
            node = pending.pop()
            if node not in self._measured:
                pending += [parent for parent in node.all_input_nodes if parent.name not in self._shapes]
            elif (labels := self._measured[node]) is not None:
                self._freeze([labels], f"{n.name}: it computes with the number of these channels")

    def _item(self, n: fx.Node, args: tuple[Any, ...]) -> Any:
        source, index = args
        if isinstance(source, _Unknown):
            return (
                self._frozen(self._shapes[n.name], "it comes from an unknown operation")
                if n.name in self._shapes
                else source
            )
        if not isinstance(source, Tensor):
            self._note_size(n, index)
            return source[index]
        items = index if isinstance(index, tuple) else (index,)
        plain = all(isinstance(item, int | slice | type(None) | type(Ellipsis)) for item in items)
        if not plain or any(not _is_whole(source, dim, item) for dim, item in _by_dimension(source, items)):
            touched = [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]
            return self._stop(n, touched, f"{n.name}: it picks channels by their number")
        return source[index]

    def _note_size(self, n: fx.Node, index: Any) -> None:
        """Of a shape whose sizes are picked one by one, each stands for its own dimension."""
        (shape, *_) = n.all_input_nodes
        labels = self._measured.get(shape)
        if labels is not None and isinstance(index, int):
            self._measured[n] = _varying(labels, index)

    def _selected(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | _Unknown:
        source, dim, index = args if len(args) == 3 else (args[0], kwargs["dim"], kwargs["index"])
        channels = along(source, dim)
        table = n.all_input_nodes[-1]
        if channels is None or table.op != "get_attr" or self._calls[table.target] + len(table.users) > 2:
            touched = [source] if table.op == "get_attr" else [source, index]
            return self._stop(n, touched, f"{n.name}: it picks channels by their number")
        self.selections[n.name] = channels
        return spread(channels[index.cpu()], dim % source.ndim, self._shapes[n.name])

    def _spatial(self, n: fx.Node, x: Tensor) -> Tensor | _Unknown:
        channels, shape = along(x, 1), self._shapes.get(n.name, ())
        if channels is None or len(shape) < 2 or shape[1] != len(channels):
            return self._stop(n, [x], f"{n.name}: it does not keep channels apart")
        return spread(channels, 1, shape)

    def _reduced(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | _Unknown:
        """Mean, sum or maximum over dimensions along which the labels repeat."""
        x: Tensor = args[0]
        dims = kwargs.get("dim", args[1] if len(args) > 1 else tuple(range(args[0].ndim)))
        dims = [dims] if isinstance(dims, int) else list(dims)
        if not all(x.shape[dim] == 1 or repeats(x, dim) for dim in dims):
            return self._stop(n, [x], f"{n.name}: it mixes channels")
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
            x = x.narrow(dim, 0, 1) if keep else x.select(dim, 0)
        return x

    def _stop(self, n: fx.Node, touched: list[Tensor], reason: str) -> Tensor | _Unknown:
        """Freezes what a node touches; its result is frozen, too."""
        self._freeze(touched, reason)
        return self._frozen(self._shapes[n.name], reason) if n.name in self._shapes else _Unknown()

    def _freeze(self, touched: list[Tensor], reason: str) -> None:
        for labels in touched:
            if not labels.is_floating_point():
                self.labels.freeze(labels, reason)

    def _frozen(self, shape: tuple[int, ...], reason: str) -> Tensor:
        label = self.labels.fresh(1)
        self.labels.freeze(label, reason)
        return label.expand(tuple(shape))


def _by_module(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Names of the tensors of each module and of those below it."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        path = name
        while "." in path:
            path = path.rpartition(".")[0]
            found[path].append(name)
    return found


def _varying(labels: Tensor, dim: Any) -> Tensor | None:
    """The labels, None where they repeat along `dim`."""
    return None if isinstance(dim, int) and repeats(labels, dim) else compact(labels)


def _is_broadcast(shape: torch.Size, varying: torch.Size) -> bool:
    """Whether a value of this shape has a single entry wherever the labels that it meets vary, and they do vary."""
    return varying.numel() > 1 and all(
        size == 1 or others == 1 for size, others in zip(reversed(shape), reversed(varying), strict=False)
    )


def _cannot_be_told(n: fx.Node, whole: list[Tensor], narrow: list[Tensor]) -> bool:
    """Whether sizes written into the call cannot say how unequal parts shrink: a chunk has none, and what repeats
    next to channels has no channels to count."""
    (dim,) = (dim for dim, sizes in enumerate(zip(*(x.shape for x in whole), strict=True)) if len(set(sizes)) > 1)
    if all(x.shape[dim] == 1 for x in narrow):
        return False  # positions
    return called(n) == "chunk" or any(y.shape[dim] == 1 < x.shape[dim] for x, y in zip(whole, narrow, strict=True))


def _by_dimension(source: Tensor, items: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """The index that each dimension of `source` gets."""
    items = tuple(item for item in items if item is not None)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        missing = source.ndim - len(items) + 1
        items = (*items[:place], *([slice(None)] * missing), *items[place + 1 :])
    return list(enumerate(items))


def _is_whole(source: Tensor, dim: int, item: Any) -> bool:
    """Whether this index leaves all labels along `dim`, or all that differ."""
    whole = item == slice(None) or source.shape[dim] == 1
    return whole or repeats(source, dim)
