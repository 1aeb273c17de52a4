"""Operations of torch.export as torch's functions and methods that forward could have called: a row for each kind.

What has no row of its own, and is called by the name of a listed function or method with the same arguments, needs
none. What is neither is refused by its name.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compresskit.errors import UnsupportedModelError
from compresskit.graph.format.allowed import FUNCTIONS, METHODS

_END = 2**62  # slices "up to the end" have the largest number there is


@dataclass(frozen=True)
class Place:
    """Where a call goes. node: of the program. make: (function or name of a method, ...) and add: (name, module, ...)
    give the node of a call. input: of the new graph."""

    node: fx.Node
    make: Callable[..., fx.Node]
    add: Callable[..., fx.Node]
    input: fx.Node

    def sizes_of(self, position: int = 0) -> tuple[Any, ...]:
        """The shape, with symbols, of what the call reads there."""
        source: Any = self.node.args[position]
        return tuple(source.meta["val"].shape)


Row = Callable[..., Any]  # (place, *args, **kwargs) of the operation -> the new node, or a value


def translate(place: Place, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The node that stands for a call; raises UnsupportedModelError for an operation that is not known."""
    name = _name(place.node)
    kwargs = {key: value for key, value in kwargs.items() if value is not None and key not in _OF_MEMORY}
    if name in ROWS:
        made = ROWS[name](place, *args, **kwargs)
    elif (function := _function(place.node, name)) is not None:
        made = place.make(function, *args, **kwargs)
    elif name in METHODS:
        made = place.make(name, *args, **kwargs)
    else:
        raise UnsupportedModelError(f"it calls {place.node.target}, for which a checkpoint has no function; {_ADVICE}")
    if isinstance(made, fx.Node):
        made.meta.setdefault("val", place.node.meta.get("val"))
    return made


def constant(node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """Of a call that reads nothing but the type of another value, what it makes; None for other calls."""
    name = _name(node)
    if name == "type_as" and isinstance(args[0], Tensor):
        return args[0].to(node.meta["val"].dtype)
    if name in _NEW and all(isinstance(size, int) for size in args[1]):
        return torch.full(args[1], _NEW[name] if len(args) < 3 else args[2], dtype=node.meta["val"].dtype)
    return None


_NEW = {"new_full": 0, "new_zeros": 0, "new_ones": 1}
_ADVICE = "write that part with functions of torch.nn.functional, or leave it out of forward"
_OF_MEMORY = frozenset({"layout", "pin_memory", "memory_format", "device", "non_blocking", "copy", "requires_grad"})


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet or getattr(node.target, "__name__", node.target)).rpartition(".")[2]


def _function(node: fx.Node, name: str) -> Callable[..., Any] | None:
    """Of Python's operators those on sizes; of torch's functions those with the operation's own arguments."""
    if getattr(node.target, "__module__", "") == "_operator":
        return FUNCTIONS.get(f"operator.{name}")
    return FUNCTIONS.get(f"torch.{name}") or FUNCTIONS.get(f"torch.nn.functional.{name}")


def _same(place: Place, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _nothing(place: Place, *_: Any, **__: Any) -> None:
    return None


def _reshape(place: Place, x: Any, sizes: Sequence[Any]) -> fx.Node:
    """The one size that depends on the batch is left to torch (-1), so that the call holds numbers alone."""
    made = list(place.node.meta["val"].shape)
    free = [at for at, size in enumerate(made) if not isinstance(size, int)]
    written = [size if isinstance(size, int) else known for size, known in zip(made, sizes, strict=True)]
    if len(free) == 1:
        written[free[0]] = -1
    return place.make(torch.reshape, x, tuple(written))


def _expand(place: Place, x: Any, sizes: Sequence[Any], **_: Any) -> fx.Node:
    before, made = place.sizes_of(), tuple(place.node.meta["val"].shape)
    kept = (None,) * (len(made) - len(before)) + before
    same = [isinstance(own, int | torch.SymInt) and not isinstance(own, int) for own in kept]
    written = [-1 if keeps else size for keeps, size in zip(same, sizes, strict=True)]
    return place.make("expand", x, *written)


def _slice(place: Place, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    start = None if start == 0 else start
    end = None if isinstance(end, int) and end > _END else end
    if start is None and end is None and step == 1:
        return x
    before = (slice(None),) * (dim % len(place.sizes_of()))
    return place.make(operator.getitem, x, (*before, slice(start, end, None if step == 1 else step)))


def _select(place: Place, x: Any, dim: int, index: Any) -> fx.Node:
    before = (slice(None),) * (dim % len(place.sizes_of()))
    return place.make(operator.getitem, x, (*before, index))


def _index(place: Place, x: Any, indices: Sequence[Any]) -> fx.Node:
    return place.make(operator.getitem, x, tuple(slice(None) if index is None else index for index in indices))


def _batch_norm(
    place: Place, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    *_: Any,
) -> fx.Node:  # fmt: skip
    return place.make(F.batch_norm, x, mean, var, weight, bias, training, momentum, eps)


def _instance_norm(
    place: Place, x: Any, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, *_: Any
) -> fx.Node:
    return place.make(F.instance_norm, x, mean, var, weight, bias, own, momentum, eps)


def _layer_norm(
    place: Place, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> fx.Node:
    return place.make(F.layer_norm, x, tuple(shape), weight, bias, eps)


def _group_norm(
    place: Place, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> fx.Node:
    return place.make(F.group_norm, x, groups, weight, bias, eps)


def _rms_norm(place: Place, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> fx.Node:
    return place.make(F.rms_norm, x, tuple(shape), weight, eps)


def _embedding(place: Place, table: Any, indices: Any, padding: int = -1, *_: Any) -> fx.Node:
    return place.make(F.embedding, indices, table, *([padding] if padding >= 0 else []))


def _pool(function: Callable[..., Any]) -> Row:
    """Where no stride is given, it is that of the windows."""

    def row(place: Place, x: Any, kernel: Any, stride: Any = (), *rest: Any) -> fx.Node:
        return place.make(function, x, kernel, stride or kernel, *rest)

    return row


def _interpolate(mode: str, antialias: bool = False) -> Row:
    smooth = {"antialias": True} if antialias else {}

    def row(place: Place, x: Any, size: Any, *rest: Any, **_: Any) -> fx.Node:
        """The size of what comes out is known, and does not depend on the batch."""
        made = tuple(place.node.meta["val"].shape[2:])
        corners = {"align_corners": bool(rest[0])} if mode in ("bilinear", "bicubic", "trilinear", "linear") else {}
        scale = next((list(item) for item in rest if isinstance(item, list | tuple)), None)
        sizes = {"size": made} if scale is None else {"scale_factor": scale}
        return place.make(F.interpolate, x, mode=mode, **sizes, **corners, **smooth)

    return row


def _pad(place: Place, x: Any, pad: Sequence[int], mode: str = "constant", value: Any = None) -> fx.Node:
    return place.make(F.pad, x, tuple(pad), mode, *([] if value is None else [value]))


def _dropout(kind: type[nn.Module]) -> Row:
    """In eval mode it passes all on; the module knows when it is training."""

    def row(place: Place, x: Any, p: float, train: bool) -> fx.Node:
        if train:
            raise UnsupportedModelError("it drops values in eval mode, too; write F.dropout(..., training=True)")
        return place.add("dropout", kind(p).eval(), x)

    return row


def _type_as(place: Place, x: Any, other: Any) -> Any:
    return _to(place, x)


def _to(place: Place, x: Any, *_: Any, **__: Any) -> Any:
    """Of where and how a tensor lies nothing is kept, of its type what changes."""
    source: Any = place.node.args[0]
    before, after = source.meta["val"].dtype, place.node.meta["val"].dtype
    return x if before is after else place.make("to", x, after)


def _factory(name: str) -> Row:
    """On the device of the input, which may be another one tomorrow."""
    function = FUNCTIONS[f"torch.{name}"]

    def row(place: Place, *args: Any, **kwargs: Any) -> fx.Node:
        return place.make(function, *args, **kwargs, device=place.make(getattr, place.input, "device"))

    return row


def _norm(place: Place, x: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> fx.Node:
    return place.make(torch.norm, x, order, dim, keepdim)


def _reverse_sub(place: Place, x: Any, other: Any, alpha: Any = 1) -> fx.Node:
    return place.make(operator.sub, other, x if alpha == 1 else place.make(operator.mul, x, alpha))


def _size(place: Place, x: Any, dim: int) -> Any:
    found = place.node.meta["val"]
    return found if isinstance(found, int) else place.make("size", x, dim)


def _split(place: Place, x: Any, sizes: Any, dim: int = 0) -> fx.Node:
    return place.make(torch.split, x, sizes, dim)


def _renamed(function: Callable[..., Any]) -> Row:
    return lambda place, *args, **kwargs: place.make(function, *args, **kwargs)


def _attention(place: Place, *args: Any, **kwargs: Any) -> fx.Node:
    return place.make(F.scaled_dot_product_attention, *args, **kwargs)


ROWS: dict[str, Row] = {
    **dict.fromkeys(("alias", "lift_fresh", "lift_fresh_copy", "detach_", "contiguous"), _same),
    **dict.fromkeys(
        (
            "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
            "sym_constrain_range_for_size", "_set_grad_enabled",
        ),
        _nothing,
    ),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "view_copy"), _reshape),
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "index": _index,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    **{f"{kind}_pool{n}d": _pool(getattr(F, f"{kind}_pool{n}d")) for kind in ("max", "avg") for n in (1, 2, 3)},
    "upsample_nearest1d": _interpolate("nearest"),
    "upsample_nearest2d": _interpolate("nearest"),
    "upsample_nearest3d": _interpolate("nearest"),
    "upsample_linear1d": _interpolate("linear"),
    "upsample_bilinear2d": _interpolate("bilinear"),
    "upsample_bicubic2d": _interpolate("bicubic"),
    "_upsample_bilinear2d_aa": _interpolate("bilinear", antialias=True),
    "_upsample_bicubic2d_aa": _interpolate("bicubic", antialias=True),
    "upsample_trilinear3d": _interpolate("trilinear"),
    "pad": _pad,
    "dropout": _dropout(nn.Dropout),
    "feature_dropout": _dropout(nn.Dropout2d),
    "alpha_dropout": _dropout(nn.AlphaDropout),
    **dict.fromkeys(("to", "_to_copy"), _to),
    "type_as": _type_as,
    **{name: _factory(name) for name in ("zeros", "ones", "full", "arange", "eye", "linspace")},
    "linalg_vector_norm": _norm,
    "rsub": _reverse_sub,
    "sym_size": _size,
    "split_with_sizes": _split,
    "scaled_dot_product_attention": _attention,
    "sym_numel": _renamed(torch.numel),
    "im2col": _renamed(F.unfold),
    "col2im": _renamed(F.fold),
    "conv_transpose1d": _renamed(F.conv_transpose1d),
    "conv_transpose2d": _renamed(F.conv_transpose2d),
    "conv_transpose3d": _renamed(F.conv_transpose3d),
}  # fmt: skip
