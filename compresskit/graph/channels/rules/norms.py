"""What norms do with labels. Those whose statistics run over channels are written down: what is cut changes them."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from compresskit.graph.channels.labels import along, compact, repeats, unite_rows
from compresskit.graph.channels.record import Norm, Record, Unknown
from compresskit.graph.channels.rules.call import Call

Kind = Literal["layer", "rms"]
_OTHERS = "its inputs are other channels at other positions"


def by_channel(record: Record, call: Call, module: nn.Module) -> Tensor | Unknown:
    """Each channel owns its entry of every tensor (scale, shift, statistics), and is passed on."""
    channels = along(call.touched[0], 1)
    if channels is None:
        return record.stop(call.node, call.touched, f"{call.node.target}: {_OTHERS}")
    _note_channels(record, call, channels)
    for name in record.own[str(call.node.target)]:
        if not name.endswith("num_batches_tracked"):
            record.slots[name, 0] = channels
    return call.touched[0]


def called_by_channel(record: Record, call: Call) -> Tensor | Unknown:
    """batch_norm or instance_norm whose tensors are arguments."""
    x, *vectors = call.touched
    channels = along(x, 1)
    if channels is None:
        return record.stop(call.node, call.touched, f"{call.node.name}: {_OTHERS}")
    _note_channels(record, call, channels)
    for vector in vectors:
        record.labels.unite(channels, vector)
    return x


def _note_channels(record: Record, call: Call, channels: Tensor) -> None:
    if call.node.name not in record.norms and call.name != "batch_norm":
        record.channel_norms[call.node.name] = channels


def layer_norm(record: Record, call: Call, module: Any) -> Tensor | Unknown:
    """LayerNorm or RMSNorm, whose tensors have the normalised dimensions, the last ones."""
    kind: Kind = "rms" if isinstance(module, nn.RMSNorm) else "layer"
    name = str(call.node.target)
    if record.calls[name] > 1 and not record.own[name]:  # its sizes are one for all calls, and no tensor ties them
        return record.stop(call.node, call.touched, f"{name}: it is called {record.calls[name]} times")
    stopped = _normalised(record, call, len(module.normalized_shape), kind)
    if stopped is None and (norm := record.norms.get(call.node.name)):
        for tensor in record.own[str(call.node.target)]:
            record.slots[tensor, norm.dim % len(module.normalized_shape)] = norm.atoms
    return call.touched[0] if stopped is None else stopped


def called_layer_norm(record: Record, call: Call) -> Tensor | Unknown:
    """layer_norm or rms_norm whose tensors are arguments."""
    x, *weights = call.touched
    count = len(call.given("input", "normalized_shape")["normalized_shape"])
    stopped = _normalised(record, call, count, "rms" if call.name == "rms_norm" else "layer")
    if stopped is not None:
        return stopped
    narrow = compact(x)
    for weight in weights:
        if call.node.name in record.norms:
            record.labels.unite(narrow.reshape(narrow.shape[-count:]).expand(weight.shape), weight)
        else:
            record.freeze([weight], f"{call.node.name}: it is the same for all channels")
    return x


def _normalised(record: Record, call: Call, count: int, kind: Kind) -> Tensor | Unknown | None:
    """Writes down along which of the last `count` dimensions the channels lie, if they do; None, or what stopped it."""
    narrow = compact(call.touched[0])
    wide = [dim - narrow.ndim for dim, size in enumerate(narrow.shape) if size > 1]
    if not any(dim >= -count for dim in wide):
        return None
    if len(wide) > 1:
        return record.stop(call.node, call.touched, f"{call.node.name}: {_OTHERS}")
    note(record, call, Norm(kind, wide[0], narrow.flatten()))
    return None


def group_norm(record: Record, call: Call, module: nn.GroupNorm) -> Tensor | Unknown:
    channels = along(call.touched[0], 1)
    if channels is not None:
        _note_groups(record, call, channels, module.num_groups)
    return by_channel(record, call, module)


def called_group_norm(record: Record, call: Call) -> Tensor | Unknown:
    channels = along(call.touched[0], 1)
    if channels is not None:
        _note_groups(record, call, channels, call.given("input", "num_groups")["num_groups"])
    return called_by_channel(record, call)


def _note_groups(record: Record, call: Call, channels: Tensor, groups: int) -> None:
    """Position i of every group loses alike; where every channel is a group, its statistics are its own."""
    if groups < len(channels):
        unite_rows(record.labels, channels.view(groups, -1))
        note(record, call, Norm("group", 1, channels))


def normalised(record: Record, call: Call) -> Tensor | Unknown:
    """torch.nn.functional.normalize: zeros add nothing to a norm."""
    given = call.given("input", "p", "dim")
    x: Tensor = given["input"]
    if not repeats(x, 1 if given["dim"] is None else given["dim"]):
        record.sums[call.node.name] = {0: compact(x)}
    return x


def over_positions(record: Record, call: Call, dim: int | None) -> Tensor | Unknown:
    """Softmax along a dimension in which the labels repeat."""
    x = call.touched[0]
    if dim is None or not repeats(x, dim):
        return record.stop(call.node, call.touched, f"{call.node.name}: it mixes channels")
    return x


def called_over_positions(record: Record, call: Call) -> Tensor | Unknown:
    return over_positions(record, call, call.given("input", "dim").get("dim"))


def note(record: Record, call: Call, norm: Norm) -> None:
    """Channels of the norm are the width of a network, unless they are positions in heads already."""
    record.norms[call.node.name] = norm
    if norm.kind == "statistic":
        record.by_hand.append(norm.atoms)
        return
    heads = torch.cat([labels.flatten() for labels in record.in_heads]) if record.in_heads else norm.atoms[:0]
    if not bool(torch.isin(norm.atoms, heads).any()):
        record.width.append(norm.atoms)
