"""Labels whose values only move: parts of splits, reshapes, and maps whose positions change."""

from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compresskit.graph.channels.labels import along, compact, spread, unite_rows
from compresskit.graph.channels.record import Record, Unknown
from compresskit.graph.operations import called


def moved(record: Record, n: fx.Node, result: Any, touched: list[Tensor]) -> Any:
    """What only moves values. Equal parts of a split, and rows where a reshape splits channels, lose alike."""
    leaves, structure = pytree.tree_flatten(result)
    results = [compact(x) for x in leaves]
    record.sizes[n.name] = results
    rectangles = [_rectangle(record, labels) for labels in results]
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


def _rectangle(record: Record, labels: Tensor) -> Tensor:
    """The same where labels vary along one dimension only; else all but the longest lose alike, since what stays
    must be a rectangle."""
    wide = [dim for dim, size in enumerate(labels.shape) if size > 1]
    longest = max(reversed(wide), key=lambda dim: labels.shape[dim], default=None)
    for dim in wide:
        if dim != longest:
            labels = unite_rows(record.labels, labels.unbind(dim)).unsqueeze(dim)
    return labels


def _cannot_be_told(n: fx.Node, whole: list[Tensor], narrow: list[Tensor]) -> bool:
    """Whether sizes written into the call cannot say how unequal parts shrink: a chunk has none, and what repeats
    next to channels has no channels to count."""
    (dim,) = (dim for dim, sizes in enumerate(zip(*(x.shape for x in whole), strict=True)) if len(set(sizes)) > 1)
    if all(x.shape[dim] == 1 for x in narrow):
        return False  # positions
    return called(n) == "chunk" or any(y.shape[dim] == 1 < x.shape[dim] for x, y in zip(whole, narrow, strict=True))
