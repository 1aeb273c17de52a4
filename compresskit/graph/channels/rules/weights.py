"""What layers with weights do with labels: fresh ones for what they make, the old ones where they only pass them on."""

from typing import Any

from torch import Tensor, fx, nn

from compresskit.graph.channels.labels import along, compact, spread, unite_rows
from compresskit.graph.channels.record import Held, Record, Unknown
from compresskit.graph.channels.rules.call import Call

_OTHERS = "its inputs are other channels at other positions"


def linear(record: Record, call: Call, layer: nn.Linear) -> Tensor | Unknown:
    """Along the last dimension; where channels lie along another one, it mixes positions and passes them on."""
    x, n = call.touched[0], call.node
    if call.loose[0]:  # a table of numbers, not of channels
        record.freeze([x], f"{n.target}: it reads a constant")
        x = record.frozen(x.shape, f"{n.target}: it reads a constant")
    read = along(x, -1)
    if read is not None:
        return record.fresh_outputs(n, layer, read, -1)
    return _over_positions(record, n, x, -1)


def convolution(record: Record, call: Call, layer: Any) -> Tensor | Unknown:
    """A depthwise convolution passes labels on; one in groups has position i of every group lose alike."""
    name, read = str(call.node.target), along(call.touched[0], 1)
    if read is None:
        return record.stop(call.node, call.touched, f"{name}: {_OTHERS}")
    if layer.groups == layer.in_channels > 1:
        passed = read.repeat_interleave(layer.out_channels // layer.in_channels)
        record.note_outputs(name, passed, layer.bias is not None)
        return spread(passed, 1, record.shapes[call.node.name])
    if layer.groups > 1:
        unite_rows(record.labels, read.view(layer.groups, -1))
    return record.fresh_outputs(call.node, layer, read, 1)


def transposed(record: Record, call: Call, layer: Any) -> Tensor | Unknown:
    """As a convolution, of a weight (in, out / groups, ...)."""
    n, name, read = call.node, str(call.node.target), along(call.touched[0], 1)
    if read is None:
        return record.stop(n, call.touched, f"{name}: {_OTHERS}")
    outputs, groups = layer.out_channels, layer.groups
    if groups == layer.in_channels > 1:
        made = read.repeat_interleave(outputs // groups)
        record.slots[f"{name}.weight", 0] = read
    else:
        made = record.labels.fresh(outputs)
        if groups > 1:
            unite_rows(record.labels, made.view(groups, -1))
            unite_rows(record.labels, read.view(groups, -1))
        record.reads[name], record.writes[name] = read, made
        record.slots[f"{name}.weight", 1] = made[: outputs // groups]
        record.note_inputs(f"{name}.weight", 0, read)
    if layer.bias is not None:
        record.slots[f"{name}.bias", 0] = made
    return spread(made, 1, record.shapes[n.name])


def embedding(record: Record, call: Call, layer: nn.Embedding) -> Tensor:
    """Whatever its input is, its entries are fresh channels along the last dimension."""
    made = record.labels.fresh(layer.embedding_dim)
    record.slots[f"{call.node.target}.weight", 1] = made
    return spread(made, -1, record.shapes[call.node.name])


def called_embedding(record: Record, call: Call) -> Tensor | Unknown:
    table = call.given("input", "weight")["weight"]
    if not is_own(record, table):
        return record.stop(call.node, call.touched, f"{call.node.name}: its table is used elsewhere, or computed")
    made = record.labels.fresh(table.tensor.shape[1])
    record.slots[table.name, 1] = made
    return spread(made, -1, record.shapes[call.node.name])


def called_linear(record: Record, call: Call) -> Tensor | Unknown:
    """A linear layer whose weight and bias are arguments."""
    given = call.given("input", "weight", "bias")
    x, weight, bias = given["input"], given["weight"], given["bias"]
    read = along(x, -1) if isinstance(x, Tensor) else None
    tensors = [one for one in (weight, bias) if one is not None]
    if read is None or not is_own(record, weight) or (isinstance(bias, Held) and not is_own(record, bias)):
        found = [one for one in (x, *tensors) if isinstance(one, Tensor)]
        return record.stop(call.node, found, f"{call.node.name}: its weights are used elsewhere, or computed")
    made = record.labels.fresh(len(weight.tensor))
    note_arguments(record, read, made, weight, bias if isinstance(bias, Held) else None)
    if isinstance(bias, Tensor):
        record.labels.unite(made, bias)
    return spread(made, -1, record.shapes[call.node.name])


def called_matmul(record: Record, call: Call, x: Tensor, weight: Held) -> Tensor | Unknown:
    """x times a weight (in, out)."""
    read = along(x, -1)
    if read is None or not is_own(record, weight):
        return record.stop(call.node, [x], f"{call.node.name}: its weight is used elsewhere, or it mixes positions")
    made = record.slots[weight.name, 1] = record.labels.fresh(weight.tensor.shape[1])
    record.note_inputs(weight.name, 0, read)
    return spread(made, -1, record.shapes[call.node.name])


def note_arguments(record: Record, read: Tensor, made: Tensor, weight: Held, bias: Held | None) -> None:
    """Slots of a weight (out, in) and a bias that are arguments of a call. Where the weight is NAME.weight, NAME is a
    layer like others."""
    path, _, last = weight.name.rpartition(".")
    if path and last == "weight":
        record.reads[path], record.writes[path] = read, made
    record.slots[weight.name, 0] = made
    record.note_inputs(weight.name, 1, read)
    if bias is not None:
        record.slots[bias.name, 0] = made


def pixel_shuffle(record: Record, call: Call, factor: int) -> Tensor | Unknown:
    """The channels that become the positions of one lose alike."""
    channels = along(call.touched[0], 1)
    if channels is None:
        return record.stop(call.node, call.touched, f"{call.node.name}: {_OTHERS}")
    made = unite_rows(record.labels, channels.view(-1, factor * factor).unbind(1))
    return spread(made, 1, record.shapes[call.node.name])


def pixel_unshuffle(record: Record, call: Call, factor: int) -> Tensor | Unknown:
    channels = along(call.touched[0], 1)
    if channels is None:
        return record.stop(call.node, call.touched, f"{call.node.name}: {_OTHERS}")
    return spread(channels.repeat_interleave(factor * factor), 1, record.shapes[call.node.name])


def _over_positions(record: Record, n: fx.Node, x: Tensor, dim: int) -> Tensor | Unknown:
    """Of a layer that mixes what lies along `dim`, where labels repeat."""
    record.mixed[n.name] = x
    narrow = compact(x)
    if narrow.shape[dim] > 1:
        return record.stop(n, [x], f"{n.target}: {_OTHERS}")
    return narrow.expand(record.shapes[n.name])


def is_own(record: Record, held: Any) -> bool:
    """Whether a tensor is read by one call alone."""
    if not isinstance(held, Held) or not held.name or held.name in record.shared:
        return False
    return record.calls[held.name] == 1 and not record.calls[held.name.rpartition(".")[0]]
