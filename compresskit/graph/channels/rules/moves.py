"""Labels whose values only move: parts of splits, reshapes, heads, and maps whose positions change."""

from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compresskit.graph.channels.labels import along, compact, spread, unite_rows
from compresskit.graph.channels.record import Record, Unknown
from compresskit.graph.operations import ELEMENTWISE, ELEMENTWISE_MODULES, EXECUTED, PRODUCTS, called

# What a value goes through on its way to a product of attention.
_ON_THE_WAY = ELEMENTWISE | EXECUTED | {"getitem", "softmax", "normalize", "layer_norm", "rms_norm", "roll"}
_SPLITTING = frozenset({"reshape", "view", "unflatten"})
_MODULES_ON_THE_WAY = ELEMENTWISE_MODULES | {"LayerNorm", "RMSNorm", "Softmax", "Flatten", "Unflatten"}


def moved(record: Record, n: fx.Node, result: Any, touched: list[Tensor]) -> Any:
    """What only moves values. Equal parts of a split, and rows where a reshape splits channels, lose alike."""
    leaves, structure = pytree.tree_flatten(result)
    results = [compact(x) for x in leaves]
    free = n in record.loose
    rectangles = record.sizes[n.name] = results if free else [_rectangle(record, n, labels) for labels in results]
    if free:
        return result
    if n in record.of_samples and any(x.ndim and x.shape[0] > 1 for x in rectangles):
        del record.sizes[n.name]
        return record.stop(n, touched, f"{n.name}: it puts channels where samples are")
    if isinstance(result, tuple | list):
        if len({x.shape for x in leaves}) == 1:
            rectangles = [unite_rows(record.labels, rectangles)] * len(rectangles)
        elif _cannot_be_told(n, leaves, results):
            record.freeze(touched, f"{n.name}: the parts that it splits channels into are unequal")
    return pytree.tree_unflatten([x.expand(y.shape) for x, y in zip(rectangles, leaves, strict=True)], structure)


def spatial(record: Record, n: fx.Node, x: Tensor) -> Tensor | Unknown:
    """Channels (dimension 1) stay apart, positions behind them change."""
    channels, shape = along(x, 1), record.shapes.get(n.name, ())
    if channels is None or len(shape) < 2 or shape[1] != len(channels):
        return record.stop(n, [x], f"{n.name}: it does not keep channels apart")
    return spread(channels, 1, shape)


def _rectangle(record: Record, n: fx.Node, labels: Tensor) -> Tensor:
    """The same where labels vary along one dimension only; else all but one lose alike, since what stays must be a
    rectangle: all but the longest, or, of heads, all but the positions in them or the heads themselves."""
    wide = [dim for dim, size in enumerate(labels.shape) if size > 1]
    if len(wide) < 2:
        return labels
    heads = (n.op == "call_module" or called(n) in _SPLITTING) and _is_attended(n)
    kept = max(reversed(wide), key=lambda dim: labels.shape[dim])
    if heads:
        kept = wide[-1]
        record.splits.add(n)
        apart = kept - 1 in wide and not (kept == 1 and n in record.of_samples)  # heads that lie among samples do not
        if (record.whole or n.name in record.whole_at) and apart:
            kept -= 1
    for dim in wide:
        if dim != kept:
            labels = unite_rows(record.labels, labels.unbind(dim)).unsqueeze(dim)
    if heads:
        record.in_heads.append(labels)
    return labels


def _is_attended(n: fx.Node) -> bool:
    """Whether the value goes on into a product of attention."""
    seen, pending = {n}, [n]
    while pending:
        for user in set(pending.pop().users) - seen:
            if user.op != "call_module" and called(user) in PRODUCTS:
                return True
            if _is_on_the_way(user):
                seen.add(user)
                pending.append(user)
    return False


def _is_on_the_way(n: fx.Node) -> bool:
    if n.op != "call_module":
        return called(n) in _ON_THE_WAY
    network = n.graph.owning_module
    assert network is not None
    return type(network.get_submodule(str(n.target))).__name__ in _MODULES_ON_THE_WAY


def note_stuck(record: Record, n: fx.Node) -> None:
    """A product mixes positions that the reshapes to heads before it keep apart: whole heads are to be kept there."""
    seen, pending = {n}, [n]
    while pending:
        for source in set(pending.pop().all_input_nodes) - seen:
            seen.add(source)
            if source in record.splits:
                record.stuck.add(source.name)
            elif _is_on_the_way(source):
                pending.append(source)


def _cannot_be_told(n: fx.Node, whole: list[Tensor], narrow: list[Tensor]) -> bool:
    """Whether sizes written into the call cannot say how unequal parts shrink: a chunk has none, and what repeats
    next to channels has no channels to count."""
    (dim,) = (dim for dim, sizes in enumerate(zip(*(x.shape for x in whole), strict=True)) if len(set(sizes)) > 1)
    if all(x.shape[dim] == 1 for x in narrow):
        return False  # positions
    return called(n) == "chunk" or any(y.shape[dim] == 1 < x.shape[dim] for x, y in zip(whole, narrow, strict=True))
