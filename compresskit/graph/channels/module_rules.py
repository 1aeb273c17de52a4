"""What each kind of module does with the labels of its inputs: a rule for each, in `RULES` and the two lists below."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from compresskit.graph.channels.labels import along, spread, unite_rows
from compresskit.graph.channels.moves import moved, spatial
from compresskit.graph.channels.record import Record, Unknown
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.operations import ELEMENTWISE_MODULES, NORMS, SPATIAL_MODULES

_OTHERS = "its inputs are other channels at other positions"

Rule = Callable[
    [Record, fx.Node, Any, list[Tensor]], Any
]  # (record, node, module, labels of its inputs) -> of its result


def apply_module(record: Record, n: fx.Node, module: nn.Module, touched: list[Tensor]) -> Any:
    """Labels of the module's result. One whose weights are used in several places, or that has no rule, freezes."""
    name = str(n.target)
    own = [] if _has_one_slope(module) else record.own[name]
    read_by_calls = any(record.calls[tensor] for tensor in own)
    if own and (record.calls[n.target] > 1 or read_by_calls or record.shared.intersection(own)):
        return record.stop(n, touched, f"{name}: its weights are used more than once")
    return _rule_of(module)(record, n, module, touched)


def _rule_of(module: nn.Module) -> Rule:
    for cls in type(module).__mro__:
        if cls in RULES:
            return RULES[cls]
    kind = type(module).__name__
    if kind in ELEMENTWISE_MODULES:
        return lambda record, n, module, touched: touched[0]
    if kind in SPATIAL_MODULES:
        return lambda record, n, module, touched: spatial(record, n, touched[0])
    return _unknown


def _linear(record: Record, n: fx.Node, layer: nn.Linear, touched: list[Tensor]) -> Tensor | Unknown:
    read = along(touched[0], -1)
    if read is None:
        return record.stop(n, touched, f"{n.target}: {_OTHERS}")
    return record.fresh_outputs(n, layer, read, -1)


def _convolution(record: Record, n: fx.Node, layer: Any, touched: list[Tensor]) -> Tensor | Unknown:
    """A depthwise convolution passes labels on; one in groups has position i of every group lose alike."""
    read = along(touched[0], 1)
    if read is None:
        return record.stop(n, touched, f"{n.target}: {_OTHERS}")
    if layer.groups == layer.in_channels > 1:
        passed = read.repeat_interleave(layer.out_channels // layer.in_channels)
        record.note_outputs(str(n.target), layer, passed)
        return spread(passed, 1, record.shapes[n.name])
    if layer.groups > 1:
        unite_rows(record.labels, read.view(layer.groups, -1))
    return record.fresh_outputs(n, layer, read, 1)


def _batch_norm(record: Record, n: fx.Node, module: nn.Module, touched: list[Tensor]) -> Tensor | Unknown:
    """Each channel owns its entry of every tensor (scale, shift, statistics), and is passed on."""
    channels = along(touched[0], 1)
    if channels is None:
        return record.stop(n, touched, f"{n.target}: {_OTHERS}")
    for name in record.own[str(n.target)]:
        if not name.endswith("num_batches_tracked"):
            record.slots[name, 0] = channels
    return touched[0]


def _prelu(record: Record, n: fx.Node, module: nn.PReLU, touched: list[Tensor]) -> Tensor | Unknown:
    """A slope for each channel goes with it; a single one may be shared and has no channel."""
    return touched[0] if _has_one_slope(module) else _batch_norm(record, n, module, touched)


def _flatten(record: Record, n: fx.Node, module: nn.Module, touched: list[Tensor]) -> Any:
    return moved(record, n, module(touched[0]), touched)


def _channel_shuffle(record: Record, n: fx.Node, module: Any, touched: list[Tensor]) -> Tensor | Unknown:
    """Groups lose alike, so that what is shuffled stays a rectangle."""
    channels = along(touched[0], 1)
    if channels is None:
        return _unknown(record, n, module, touched)
    shares = unite_rows(record.labels, channels.view(module.groups, -1))
    return spread(shares.repeat_interleave(module.groups), 1, touched[0].shape)


def _permutation(record: Record, n: fx.Node, module: ChannelPermutation, touched: list[Tensor]) -> Tensor | Unknown:
    x = touched[0]
    channels = along(x, module.dim)
    if channels is None or record.calls[n.target] > 1:
        return _unknown(record, n, module, touched)
    record.selections[n.name] = channels
    return spread(channels[module.indices().cpu()], module.dim % x.ndim, x.shape)


def _unknown(record: Record, n: fx.Node, module: nn.Module, touched: list[Tensor]) -> Tensor | Unknown:
    return record.stop(n, touched, f"{n.target}: {type(module).__name__} mixes channels, or is not known")


def _has_one_slope(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys(NORMS, _batch_norm),
    nn.PReLU: _prelu,
    nn.Flatten: _flatten,
    nn.Unflatten: _flatten,
    nn.ChannelShuffle: _channel_shuffle,
    ChannelPermutation: _permutation,
}
