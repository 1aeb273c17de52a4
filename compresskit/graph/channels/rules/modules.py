"""What each kind of module does with the labels of its inputs: a rule for each, in `RULES` and the two lists below."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compresskit.graph.channels.labels import along, spread, unite_rows
from compresskit.graph.channels.record import OUTPUT, Record, Unknown
from compresskit.graph.channels.rules import attention, norms, weights
from compresskit.graph.channels.rules.call import Call
from compresskit.graph.channels.rules.moves import moved, spatial
from compresskit.graph.layers.grouped import ChannelPermutation
from compresskit.graph.layers.outputs import Outputs
from compresskit.graph.layers.windows import WindowAttention
from compresskit.graph.operations import ELEMENTWISE_MODULES, INSTANCE_NORMS, NORMS, SPATIAL_MODULES, TRANSPOSED

_ONCE = (nn.MultiheadAttention, WindowAttention, ChannelPermutation)  # each call of these is rewritten by itself
Rule = Callable[[Record, Call, Any], Any]  # (record, call, module) -> labels of its result


def apply_module(record: Record, call: Call, module: nn.Module) -> Any:
    """Labels of the module's result. One without a rule, or whose weights calls read as well, freezes.

    Of one that is called several times, all calls lose the same channels, if all are written down as slots.
    """
    name = str(call.node.target)
    own = [] if _has_one_slope(module) else record.own[name]
    several = record.calls[name] > 1 and isinstance(module, _ONCE)
    if own and (several or any(record.calls[tensor] for tensor in own)):
        return record.stop(call.node, call.touched, f"{name}: its weights are used more than once")
    return _rule_of(module)(record, call, module)


def _rule_of(module: nn.Module) -> Rule:
    for cls in type(module).__mro__:
        if cls in RULES:
            return RULES[cls]
    kind = type(module).__name__
    if kind in ELEMENTWISE_MODULES:
        return lambda record, call, module: call.touched[0]
    if kind in SPATIAL_MODULES:
        return lambda record, call, module: spatial(record, call.node, call.touched[0])
    return _unknown


def _prelu(record: Record, call: Call, module: nn.PReLU) -> Tensor | Unknown:
    """A slope for each channel goes with it; a single one may be shared and has no channel."""
    return call.touched[0] if _has_one_slope(module) else norms.by_channel(record, call, module)


def _flatten(record: Record, call: Call, module: nn.Module) -> Any:
    return moved(record, call.node, module(call.touched[0]), call.touched)


def _softmax(record: Record, call: Call, module: nn.Softmax) -> Tensor | Unknown:
    return norms.over_positions(record, call, module.dim)


def _channel_shuffle(record: Record, call: Call, module: Any) -> Tensor | Unknown:
    """Groups lose alike, so that what is shuffled stays a rectangle."""
    channels = along(call.touched[0], 1)
    if channels is None:
        return _unknown(record, call, module)
    shares = unite_rows(record.labels, channels.view(module.groups, -1))
    return spread(shares.repeat_interleave(module.groups), 1, call.touched[0].shape)


def _pixel_shuffle(record: Record, call: Call, module: nn.PixelShuffle) -> Tensor | Unknown:
    return weights.pixel_shuffle(record, call, module.upscale_factor)


def _pixel_unshuffle(record: Record, call: Call, module: nn.PixelUnshuffle) -> Tensor | Unknown:
    return weights.pixel_unshuffle(record, call, module.downscale_factor)


def _permutation(record: Record, call: Call, module: ChannelPermutation) -> Tensor | Unknown:
    x, n = call.touched[0], call.node
    channels = along(x, module.dim)
    if channels is None or record.calls[n.target] > 1:
        return _unknown(record, call, module)
    record.selections[n.name] = channels
    return spread(channels[module.indices().cpu()], module.dim % x.ndim, x.shape)


def _outputs(record: Record, call: Call, module: Outputs) -> Tensor | Unknown:
    return record.stop(call.node, call.touched, OUTPUT)


def _unknown(record: Record, call: Call, module: nn.Module) -> Tensor | Unknown:
    reason = f"{call.node.target}: {type(module).__name__} mixes channels, or is not known"
    return record.stop(call.node, call.touched, reason)


def _has_one_slope(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: weights.linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), weights.convolution),
    **dict.fromkeys(TRANSPOSED, weights.transposed),
    nn.Embedding: weights.embedding,
    **dict.fromkeys((*NORMS, *INSTANCE_NORMS), norms.by_channel),
    nn.LayerNorm: norms.layer_norm,
    nn.RMSNorm: norms.layer_norm,
    nn.GroupNorm: norms.group_norm,
    nn.PReLU: _prelu,
    nn.Softmax: _softmax,
    nn.Flatten: _flatten,
    nn.Unflatten: _flatten,
    nn.ChannelShuffle: _channel_shuffle,
    nn.PixelShuffle: _pixel_shuffle,
    nn.PixelUnshuffle: _pixel_unshuffle,
    nn.MultiheadAttention: attention.multihead,
    WindowAttention: attention.windowed,
    ChannelPermutation: _permutation,
    Outputs: _outputs,
}
