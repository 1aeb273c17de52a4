"""Receptive fields: which positions of a source each position of a value sees, one spatial dimension at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

WINDOWED = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
PADDED = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d)
WINDOWED_FUNCTIONS = {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"}


@dataclass(frozen=True)
class Field:
    """Position p of the value sees the source from stride * p + lo to stride * p + hi, both included."""

    stride: int
    lo: int
    hi: int

    def behind(self, kernel: int, stride: int, padding: int, dilation: int) -> "Field":
        """Field of the output of a window operation on this value (FuseInit's stride s1 r1 s2, offset exact)."""
        return Field(
            self.stride * stride,
            self.lo - self.stride * padding,
            self.hi + self.stride * ((kernel - 1) * dilation - padding),
        )

    def padded(self, before: int) -> "Field":
        """Field behind a padding with a constant, of which `before` positions come first; below 0 they are cut off."""
        return Field(self.stride, self.lo - self.stride * before, self.hi - self.stride * before)

    def joined(self, other: "Field") -> "Field":
        """Field of an elementwise function of two values."""
        return Field(self.stride, min(self.lo, other.lo), max(self.hi, other.hi))

    def seeing(self, size_in: int, size_out: int) -> "Field":
        """The part of the field that meets the source, of `size_in` positions, for some of `size_out` positions."""
        return Field(self.stride, max(self.lo, -self.stride * (size_out - 1)), min(self.hi, size_in - 1))

    def window(self, kernel: int | None) -> tuple[int, int]:
        """(kernel, padding before) of a convolution that sees the middle `kernel` positions of the field, or all."""
        width = self.hi - self.lo + 1
        kernel = kernel or width
        return kernel, -(self.lo + (width - kernel) // 2)


Fields = tuple[Field, ...]


def receptive_fields(
    network: fx.GraphModule, source: fx.Node, nodes: Sequence[fx.Node], shapes: dict[str, tuple[int, ...]]
) -> Fields | None:
    """Field of a chain's target, the last of `nodes`, for each spatial dimension; None where a value in between sees
    the whole map of the source.

    Paddings with a constant move it. Elementwise nodes and those that keep the size of the map pass the field on;
    branches of a residual join, and a branch that sees the whole map (squeeze and excitation) widens no other.
    """
    dimensions = len(shapes[source.name]) - 2
    fields: dict[fx.Node, Fields | None] = {source: (Field(1, 0, 0),) * dimensions}
    for node in nodes:
        fields[node] = _after(network, node, fields, shapes)
    return fields[nodes[-1]]


def _after(
    network: fx.GraphModule, node: fx.Node, fields: dict[fx.Node, Fields | None], shapes: dict[str, tuple[int, ...]]
) -> Fields | None:
    inputs = [(parent, field) for parent in node.all_input_nodes if (field := fields.get(parent)) is not None]
    if not inputs:
        return None
    joined = inputs[0][1]
    for _, other in inputs[1:]:
        if [field.stride for field in other] == [field.stride for field in joined]:
            joined = tuple(a.joined(b) for a, b in zip(joined, other, strict=True))
    window = _window(network, node)
    if window is not None:
        sizes = zip(*(_per_dimension(option, len(joined)) for option in window), strict=True)
        return tuple(field.behind(*size) for field, size in zip(joined, sizes, strict=True))
    if (pads := _padding(network, node, len(joined))) is not None:
        return tuple(field.padded(before) for field, before in zip(joined, pads, strict=True))
    same = shapes.get(node.name, ())[2:] == shapes.get(inputs[0][0].name, ())[2:]
    return joined if same and node.name in shapes else None


def _window(network: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """(kernel, stride, padding, dilation) of a convolution or pooling, as the module or the call gives them."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if not isinstance(module, WINDOWED):
            return None
        options = [getattr(module, name, default) for name, default in _DEFAULTS.items()]
    elif (name := getattr(node.target, "__name__", "")) in WINDOWED_FUNCTIONS:
        positional = list(_DEFAULTS)[: 4 if name.startswith("max") else 3]  # an average has no dilation
        given = dict(zip(positional, node.args[1:], strict=False)) | node.kwargs
        options = [given.get(name, default) for name, default in _DEFAULTS.items()]
    else:
        return None
    kernel, stride, padding, dilation = options
    if padding == "same":  # torch pads the larger half behind
        spans = zip(kernel, _per_dimension(dilation, len(kernel)), strict=True)
        padding = tuple((k - 1) * d // 2 for k, d in spans)
    return kernel, stride or kernel, 0 if padding == "valid" else padding, dilation


def _padding(network: fx.GraphModule, node: fx.Node, dimensions: int) -> tuple[int, ...] | None:
    """Positions that a padding with a constant puts before each spatial dimension; None for any other node."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        amounts = module.padding if isinstance(module, PADDED) else None
    elif getattr(node.target, "__name__", "") == "pad" and _argument(node, 2, "mode", "constant") == "constant":
        amounts = _argument(node, 1, "pad", None)
    else:
        return None
    if not isinstance(amounts, list | tuple) or len(amounts) > 2 * dimensions:
        return None
    whole = [*amounts, *[0] * (2 * dimensions - len(amounts))]  # torch names the last dimension first
    return tuple(int(before) for before in whole[-2::-2])


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


_DEFAULTS: dict[str, Any] = {"kernel_size": 1, "stride": None, "padding": 0, "dilation": 1}


def _per_dimension(option: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (option,) * dimensions if isinstance(option, int) else tuple(option)
