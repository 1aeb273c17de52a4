"""Attention, as torch and as the Swin Transformer write it; by hand it is made of products."""

from typing import Any

from torch import Tensor, nn

from compresskit.graph.channels.labels import along, compact, spread, unite_rows
from compresskit.graph.channels.record import Held, Record, Unknown
from compresskit.graph.channels.rules.call import Call
from compresskit.graph.channels.rules.elementwise import meet
from compresskit.graph.channels.rules.moves import note_stuck
from compresskit.graph.channels.rules.products import MIXED, contracted, letters
from compresskit.graph.channels.rules.weights import is_own, note_arguments
from compresskit.graph.layers.windows import WindowAttention


def scaled_dot_product(record: Record, call: Call) -> Tensor | Unknown:
    """Two products with a softmax between them. The scale is that of the positions which heads had at first."""
    given, n = call.given("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"), call.node
    query, key, value, mask = (given[one] for one in ("query", "key", "value", "attn_mask"))
    logits = contracted(record, (query, key), (letters(query, "id"), letters(key, "jd")), letters(query, "ij"))
    if logits is not None and isinstance(mask, Tensor):
        logits = meet(record, n.name, [logits, mask], [False, call.is_loose(mask)])
    mixed = (
        None
        if logits is None
        else contracted(record, (logits, value), (letters(logits, "ij"), letters(value, "jd")), letters(logits, "id"))
    )
    if mixed is None:
        note_stuck(record, n)
        return record.stop(n, call.touched, f"{n.name}: {MIXED}")
    if compact(query).shape[-1] > 1:
        record.sums[n.name] = {0: compact(query), 1: compact(key)}
        if given["scale"] is None:
            record.scales[n.name] = float(query.shape[-1] ** -0.5)
    return mixed


def multihead(record: Record, call: Call, module: nn.MultiheadAttention) -> Any:
    """torch's own layer. Masks, and the weights of its attention as a result, are not followed."""
    given = call.given("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    inputs, name = [given[one] for one in ("query", "key", "value")], str(call.node.target)
    reads = [read for x in inputs if (read := along(x, -1)) is not None]
    odd = module.bias_k is not None or module.add_zero_attn or module.in_proj_weight is None
    masked = given["key_padding_mask"] is not None or given["attn_mask"] is not None
    weights_used = any(user.args[1] != 0 and user.users for user in call.node.users)
    if odd or masked or weights_used or inputs[0].ndim != 3 or len(reads) < 3:
        return record.stop(call.node, call.touched, f"{name}: it has masks, returns weights, or is of an odd kind")
    rows, mixed = _packed(record, call, module.num_heads, 3 * module.embed_dim)
    record.note_inputs(f"{name}.in_proj_weight", 1, unite_rows(record.labels, reads))
    record.note_inputs(f"{name}.in_proj_weight", 0, rows)
    if module.in_proj_bias is not None:
        record.note_inputs(f"{name}.in_proj_bias", 0, rows)
    made = record.labels.fresh(module.embed_dim)
    record.note_layer(f"{name}.out_proj", mixed, made, module.out_proj.bias is not None)
    return spread(made, -1, inputs[0].shape), Unknown()


def windowed(record: Record, call: Call, module: WindowAttention) -> Tensor | Unknown:
    """Attention in windows, whose weights are arguments."""
    given = call.given("x", "qkv_weight", "proj_weight", "position_bias", "qkv_bias", "proj_bias", "logit_scale")
    x, bias, scale = given["x"], given["position_bias"], given["logit_scale"]
    read = along(x, -1)
    held = [given[one] for one in ("qkv_weight", "proj_weight", "qkv_bias", "proj_bias") if given[one] is not None]
    if read is None or not all(is_own(record, one) for one in held):
        return record.stop(call.node, call.touched, f"{call.node.target}: its weights are used elsewhere, or computed")
    rows, mixed = _packed(record, call, module.num_heads, len(given["qkv_weight"].tensor))
    note_arguments(record, read, rows, given["qkv_weight"], given["qkv_bias"])
    record.blinding += [(one.name, 0) for one in (given["qkv_weight"], given["qkv_bias"]) if one is not None]
    heads = mixed.view(module.num_heads, -1)[:, 0] if record.whole else record.frozen((module.num_heads,), "a head")
    logits = spread(heads, 1, bias.shape)
    for other in (bias, scale):
        if other is not None:
            labels = record.labelled(other) if isinstance(other, Held) else other
            logits = meet(record, call.node.name, [logits, labels], [False, call.is_loose(labels)])
    made = record.labels.fresh(len(given["proj_weight"].tensor))
    note_arguments(record, mixed, made, given["proj_weight"], given["proj_bias"])
    return spread(made, -1, x.shape)


def _packed(record: Record, call: Call, heads: int, rows: int) -> tuple[Tensor, Tensor]:
    """Labels of the rows of a weight that makes query, key and value, and of what attention makes of the values."""
    made = record.labels.fresh(rows).view(3, heads, -1)
    if record.whole and heads > 1:
        own = unite_rows(record.labels, made.transpose(0, 1).flatten(1).unbind(1))[:, None]
        record.heads.append(own)
    else:
        own = unite_rows(record.labels, made.flatten(0, 1).unbind(0))
        record.positions.append(own)
    mixed = own.expand(made.shape[1:])
    record.sizes[call.node.name] = [mixed]
    return made.flatten(), mixed.flatten()
