"""What each function and method does with the labels of its arguments: a rule for each name, in `RULES`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compresskit.graph.channels.labels import along, broadcast, compact, concatenated, repeats, spread
from compresskit.graph.channels.moves import moved, spatial
from compresskit.graph.channels.record import Record, Unknown
from compresskit.graph.operations import ELEMENTWISE, EXECUTED, REDUCING, SPATIAL, called


@dataclass(frozen=True)
class Call:
    """A call with labels for its arguments. touched: the tensors among them. run: the call itself, on the labels."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    touched: list[Tensor]
    run: Callable[[], Any]


Rule = Callable[[Record, Call], Any]


def apply_call(record: Record, call: Call) -> Any:
    """Labels of the call's result; a call that has no rule freezes what it touches."""
    return RULES.get(called(call.node), _unknown)(record, call)


def item(record: Record, call: Call) -> Any:
    """A part of a tensor, a tuple or a shape. Of a tensor's channels all are taken, or they are frozen."""
    source, index = call.args
    n = call.node
    if isinstance(source, Unknown):
        known = n.name in record.shapes
        return record.frozen(record.shapes[n.name], "it comes from an unknown operation") if known else source
    if not isinstance(source, Tensor):
        _note_size(record, n, index)
        return source[index]
    items = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(item, int | slice | type(None) | type(Ellipsis)) for item in items)
    if not plain or any(not _is_whole(source, dim, item) for dim, item in _by_dimension(source, items)):
        touched = [x for x in pytree.tree_leaves(call.args) if isinstance(x, Tensor)]
        return record.stop(n, touched, f"{n.name}: it picks channels by their number")
    return source[index]


def _measure(record: Record, call: Call) -> Any:
    n = call.node
    if not call.touched:
        return _unknown(record, call)
    along_one = n.args[1] if called(n) == "size" and len(n.args) > 1 else n.kwargs.get("dim")
    labels = call.touched[0]
    record.measured[n] = compact(labels) if along_one is None else _varying(labels, along_one)
    return call.run()


def _first(record: Record, call: Call) -> Any:
    """Of another tensor, the type alone is read."""
    return call.args[0]


def _elementwise(record: Record, call: Call) -> Tensor:
    """Unites what meets. A single channel that is broadcast over others is none of them, and stays."""
    _freeze_measured(record, call.node)
    found = call.touched
    shape = broadcast(found)
    if len(found) > 1:
        narrow = [compact(x) for x in found]
        varying = broadcast(narrow)
        single = [y.numel() == 1 and _is_broadcast(x.shape, varying) for x, y in zip(found, narrow, strict=True)]
        for x in (x for x, alone in zip(found, single, strict=True) if alone):
            record.freeze([x], f"{call.node.name}: it is broadcast over channels")
        found = [x for x, alone in zip(found, single, strict=True) if not alone]
    first, *others = (x.expand(shape) for x in found)
    for other in others:
        record.labels.unite(first, other)
    return first


def _executed(record: Record, call: Call) -> Any:
    return moved(record, call.node, call.run(), call.touched)


def _view(record: Record, call: Call) -> Any:
    """As a reshape: labels that repeat have no memory of their own to be viewed."""
    source, *sizes = call.args
    return moved(record, call.node, source.reshape(*call.kwargs.get("size", sizes)), call.touched)


def _cat(record: Record, call: Call) -> Any:
    if not call.args or call.kwargs.keys() - {"dim"}:
        return _executed(record, call)
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
    return moved(record, call.node, concatenated(call.args[0], dim), call.touched)


def _spatial(record: Record, call: Call) -> Tensor | Unknown:
    return spatial(record, call.node, call.touched[0])


def _selected(record: Record, call: Call) -> Tensor | Unknown:
    args, kwargs, n = call.args, call.kwargs, call.node
    given = dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs
    source, dim, index = given["input"], given["dim"], given["index"]
    channels = along(source, dim)
    table = n.all_input_nodes[-1]
    if channels is None or table.op != "get_attr" or record.calls[table.target] + len(table.users) > 2:
        touched = [source] if table.op == "get_attr" else [source, index]
        return record.stop(n, touched, f"{n.name}: it picks channels by their number")
    record.selections[n.name] = channels
    return spread(channels[index.cpu()], dim % source.ndim, record.shapes[n.name])


def _reduced(record: Record, call: Call) -> Tensor | Unknown:
    """Mean, sum or maximum over dimensions along which the labels repeat."""
    x, args = call.touched[0], call.args
    dims = call.kwargs.get("dim", args[1] if len(args) > 1 else tuple(range(x.ndim)))
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not all(x.shape[dim] == 1 or repeats(x, dim) for dim in dims):
        return record.stop(call.node, [x], f"{call.node.name}: it mixes channels")
    keep = call.kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.narrow(dim, 0, 1) if keep else x.select(dim, 0)
    reduced: Tensor = x
    return reduced


def _unknown(record: Record, call: Call) -> Tensor | Unknown:
    n = call.node
    return record.stop(n, call.touched, f"{n.name}: {called(n)} mixes channels, or is not known")


def _note_size(record: Record, n: fx.Node, index: Any) -> None:
    """Of a shape whose sizes are picked one by one, each stands for its own dimension."""
    (shape, *_) = n.all_input_nodes
    labels = record.measured.get(shape)
    if labels is not None and isinstance(index, int):
        record.measured[n] = _varying(labels, index)


def _freeze_measured(record: Record, n: fx.Node) -> None:
    """A number made of the size of an activation would change with its channels, and what is computed with it."""
    pending = [node for node in n.all_input_nodes if node.name not in record.shapes]
    while pending:
        node = pending.pop()
        if node not in record.measured:
            pending += [parent for parent in node.all_input_nodes if parent.name not in record.shapes]
        elif (labels := record.measured[node]) is not None:
            record.freeze([labels], f"{n.name}: it computes with the number of these channels")


def _varying(labels: Tensor, dim: Any) -> Tensor | None:
    """The labels, None where they repeat along `dim`."""
    return None if isinstance(dim, int) and repeats(labels, dim) else compact(labels)


def _is_broadcast(shape: torch.Size, varying: torch.Size) -> bool:
    """Whether a value of this shape has a single entry wherever the labels that it meets vary, and they do vary."""
    return varying.numel() > 1 and all(
        size == 1 or others == 1 for size, others in zip(reversed(shape), reversed(varying), strict=False)
    )


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


RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCING, _reduced),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(EXECUTED, _executed),
    "cat": _cat,
    "concat": _cat,
    "view": _view,
    "getitem": item,
    "index_select": _selected,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "to": _first,
    "type_as": _first,
    **dict.fromkeys(("size", "dim", "getattr", "numel"), _measure),
}
