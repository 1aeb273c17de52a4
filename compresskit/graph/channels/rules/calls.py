"""What each function and method does with the labels of its arguments: a rule for each name, in `RULES`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from compresskit.graph.channels.labels import along, compact, concatenated, repeats, spread, unite_rows
from compresskit.graph.channels.numbers import computed, sizes_of
from compresskit.graph.channels.record import Held, Norm, Record, Unknown
from compresskit.graph.channels.rules import attention, norms, products, weights
from compresskit.graph.channels.rules.call import Call
from compresskit.graph.channels.rules.elementwise import meet
from compresskit.graph.channels.rules.moves import moved, spatial
from compresskit.graph.layers.windows import relative_position_bias
from compresskit.graph.operations import ELEMENTWISE, EXECUTED, REDUCING, SPATIAL

Rule = Callable[[Record, Call], Any]


def apply_call(record: Record, call: Call) -> Any:
    """Labels of the call's result; a call that has no rule freezes what it touches."""
    return RULES.get(call.name, _unknown)(record, call)


def item(record: Record, call: Call) -> Any:
    """A part of a tensor, or of several. Of a tensor's channels all are taken, or they are frozen."""
    source, index = call.args
    n = call.node
    if isinstance(source, Unknown):
        known = n.name in record.shapes
        return record.frozen(record.shapes[n.name], "it comes from an unknown operation") if known else source
    if not isinstance(source, Tensor):
        return source[index]
    items = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(item, int | slice | Held | type(None) | type(Ellipsis)) for item in items)
    free = n in record.loose
    apart = [dim for dim, item in _by_dimension(source, items) if not free and not _is_whole(source, dim, item)]
    if not plain:
        return record.stop(n, call.touched, f"{n.name}: it picks channels by their number")
    if apart:
        return _sliced(record, call, source, items, apart)
    return source[tuple(item.tensor.cpu() if isinstance(item, Held) else item for item in items)]


def _sliced(record: Record, call: Call, source: Tensor, items: tuple[Any, ...], dims: list[int]) -> Tensor | Unknown:
    """Channels that can be counted when some are gone: one range of them, or every n-th, of which all that are left out
    lose alike."""
    (dim, *more), channels, n = dims, along(source, dims[0]), call.node
    item = dict(_by_dimension(source, items))[dim]
    if more or channels is None or not isinstance(item, slice):
        return record.stop(n, call.touched, f"{n.name}: it picks channels by their number")
    start, stop, step = item.indices(len(channels))
    if step == 1:
        record.slices[n.name] = (_place(items, dim, source.ndim), channels)
    elif len(channels) % step or start >= step or stop < len(channels):
        return record.stop(n, call.touched, f"{n.name}: it picks channels by their number")
    else:
        shares = unite_rows(record.labels, channels.view(-1, step).unbind(1))
        source = spread(shares.repeat_interleave(step), dim, source.shape)
    return source[items]


def _measure(record: Record, call: Call) -> Any:
    if not call.touched:
        return _unknown(record, call)
    (x, *_), given = call.touched, call.given("input", "dim")
    if call.name == "numel":
        return computed(x.numel(), [sizes_of(x)])
    if call.name == "size" and isinstance(given["dim"], int):
        return sizes_of(x)[given["dim"]]
    return sizes_of(x) if call.name == "size" or call.args[1:] == ("shape",) else call.run()


def _first(record: Record, call: Call) -> Any:
    """Of another tensor, the type alone is read."""
    return call.args[0]


def _elementwise(record: Record, call: Call) -> Tensor:
    return meet(record, call.node.name, call.touched, call.loose)


def _executed(record: Record, call: Call) -> Any:
    return moved(record, call.node, call.run(), call.touched)


def _view(record: Record, call: Call) -> Any:
    """As a reshape: labels that repeat have no memory of their own to be viewed."""
    source, *sizes = call.args
    return moved(record, call.node, source.reshape(*call.kwargs.get("size", sizes)), call.touched)


def _cat(record: Record, call: Call) -> Any:
    """Along channels they come one behind another; along positions what is joined is one channel."""
    if not call.args or call.kwargs.keys() - {"dim"}:
        return _executed(record, call)
    given = call.given("tensors", "dim")
    parts, dim = given["tensors"], (given["dim"] or 0) % given["tensors"][0].ndim
    firm = [x for x in parts if not call.is_loose(x)]
    wide = {d for x in firm for d, size in enumerate(compact(x).shape) if size > 1}
    if not firm or dim in wide or not wide:
        return moved(record, call.node, concatenated(parts, dim), call.touched)
    first = firm[0].narrow(dim, 0, 1)
    for x in parts:
        if x is not firm[0]:
            narrow = x if call.is_loose(x) else x.narrow(dim, 0, 1)
            record.labels.unite(first.expand(narrow.shape), narrow)
    return first.expand(record.shapes[call.node.name])


def _rolled(record: Record, call: Call) -> Tensor | Unknown:
    """Of positions; a flip or roll of channels would pick them by number."""
    given = call.given("input", "shifts", "dims") if call.name == "roll" else call.given("input", "dims")
    x, dims = given["input"], given["dims"]
    dims = [dims] if isinstance(dims, int) else dims
    if dims is None or not all(repeats(x, dim) for dim in dims):
        return record.stop(call.node, [x], f"{call.node.name}: it moves channels to other numbers")
    rolled: Tensor = x
    return rolled


def _padded(record: Record, call: Call) -> Tensor | Unknown:
    given = call.given("input", "pad")
    x, pads = given["input"], given["pad"]
    padded = [x.ndim - 1 - place // 2 for place, pad in enumerate(pads) if pad]
    if not all(x.shape[dim] == 1 or repeats(x, dim) for dim in padded):
        return record.stop(call.node, [x], f"{call.node.name}: it adds channels")
    return compact(x).expand(record.shapes[call.node.name])


def _merged_patches(record: Record, call: Call) -> Tensor | Unknown:
    """Four pixels, one behind another."""
    channels = along(call.touched[0], -1)
    if channels is None:
        return _unknown(record, call)
    return spread(channels.repeat(4), -1, record.shapes[call.node.name])


def _position_bias(record: Record, call: Call) -> Tensor:
    """A table by offsets, looked up."""
    table, index, window = call.args
    looked_up: Tensor = relative_position_bias(table, index.tensor.cpu(), window)
    return looked_up


def _matmul(record: Record, call: Call) -> Tensor | Unknown:
    """Of two activations, or of one and a weight that is applied to it."""
    if len(call.args) == 2 and isinstance(weight := call.args[1], Held):
        if weight.tensor.ndim == 2 and isinstance(call.args[0], Tensor):
            return weights.called_matmul(record, call, call.args[0], weight)
        labels = [record.labelled(one) if isinstance(one, Held) else one for one in call.args]
        call = replace(call, touched=labels)
    return products.matmul(record, call)


def _addmm(record: Record, call: Call) -> Tensor | Unknown:
    """A bias, and values times a weight (in, out)."""
    bias, x, weight = call.args
    if call.kwargs or not all(isinstance(one, Tensor) for one in (bias, x)) or not isinstance(weight, Held):
        return _unknown(record, call)
    made = weights.called_matmul(record, call, x, weight)
    if isinstance(made, Tensor):
        record.labels.unite(made, bias.expand(made.shape))
    return made


def _pixel_shuffle(record: Record, call: Call) -> Tensor | Unknown:
    return weights.pixel_shuffle(record, call, call.args[1])


def _pixel_unshuffle(record: Record, call: Call) -> Tensor | Unknown:
    return weights.pixel_unshuffle(record, call, call.args[1])


def _shaped_as(record: Record, call: Call) -> Any:
    """A reshape to the shape of a tensor, which loses what this one does."""
    x, other = call.touched
    made = moved(record, call.node, call.run(), [x])
    ours, theirs = compact(made), compact(other)
    if ours.shape != theirs.shape:
        return record.stop(call.node, call.touched, f"{call.node.name}: it has the shape of other channels")
    record.labels.unite(ours, theirs)
    return made


def _spatial(record: Record, call: Call) -> Tensor | Unknown:
    return spatial(record, call.node, call.touched[0])


def _selected(record: Record, call: Call) -> Tensor | Unknown:
    args, kwargs, n = call.args, call.kwargs, call.node
    given = dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs
    source, dim, index = given["input"], given["dim"], given["index"]
    channels = along(source, dim)
    known = isinstance(index, Held) and index.name and record.calls[index.name] + len(index.node.users) == 2
    if channels is None or not known:
        return record.stop(n, [source], f"{n.name}: it picks channels by their number")
    record.selections[n.name] = channels
    return spread(channels[index.tensor.cpu()], dim % source.ndim, record.shapes[n.name])


def _reduced(record: Record, call: Call) -> Tensor | Unknown:
    """Mean, norm or maximum. Over channels it is a statistic: of what stays, or, of a sum, without what is dead."""
    order = ("input", "p", "dim", "keepdim") if call.name == "norm" else ("input", "dim", "keepdim")
    given = call.given(*order)
    x, dims, keep = call.touched[0], given["dim"], bool(given["keepdim"])
    dims = list(range(x.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    narrow = compact(x)
    wide = [dim for dim, size in enumerate(narrow.shape) if size > 1]
    if any(dim % x.ndim in wide for dim in dims):
        if len(wide) > 1 or call.node.name not in record.shapes:
            return record.stop(call.node, [x], f"{call.node.name}: it mixes channels")
        if call.name in ("sum", "norm"):
            record.sums[call.node.name] = {0: narrow}
        else:
            norms.note(record, call, Norm("statistic", wide[0], narrow.flatten()))
        return record.frozen(record.shapes[call.node.name], f"{call.node.name}: it has no channels")
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.narrow(dim, 0, 1) if keep else x.select(dim, 0)
    reduced: Tensor = x
    return reduced


def _unknown(record: Record, call: Call) -> Tensor | Unknown:
    n = call.node
    return record.stop(n, call.touched, f"{n.name}: {call.name} mixes channels, or is not known")


def _by_dimension(source: Tensor, items: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """The index that each dimension of `source` gets."""
    items = tuple(item for item in items if item is not None)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        missing = source.ndim - len(items) + 1
        items = (*items[:place], *([slice(None)] * missing), *items[place + 1 :])
    return list(enumerate(items))


def _place(items: tuple[Any, ...], dim: int, ndim: int) -> int:
    """Of the index for a dimension, among all."""
    places = [place for place, item in enumerate(items) if item is not None]
    dots = [place for place in places if items[place] is Ellipsis]
    return places[dim] if not dots or dim < places.index(dots[0]) else places[dim - ndim]


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
    **dict.fromkeys(("reshape_as", "view_as"), _shaped_as),
    "getitem": item,
    "index_select": _selected,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "to": _first,
    "type_as": _first,
    **dict.fromkeys(("size", "dim", "getattr", "numel"), _measure),
    "pad": _padded,
    **dict.fromkeys(("roll", "flip"), _rolled),
    "merge_patches": _merged_patches,
    "relative_position_bias": _position_bias,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **dict.fromkeys(("batch_norm", "instance_norm"), norms.called_by_channel),
    **dict.fromkeys(("layer_norm", "rms_norm"), norms.called_layer_norm),
    "group_norm": norms.called_group_norm,
    "normalize": norms.normalised,
    "softmax": norms.called_over_positions,
    "linear": weights.called_linear,
    "embedding": weights.called_embedding,
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "addmm": _addmm,
    "einsum": products.einsum,
    "scaled_dot_product_attention": attention.scaled_dot_product,
}
