"""Products of two activations."""

from torch import Tensor

from compresskit.graph.channels.labels import compact
from compresskit.graph.channels.record import Record, Unknown
from compresskit.graph.channels.rules.call import Call
from compresskit.graph.channels.rules.moves import note_stuck

MIXED = "it multiplies channels along several dimensions, or along one of its arguments alone"
_BATCH = "abcdefgh"


def letters(x: Tensor, last: str) -> str:
    """A letter for each dimension; those before the last ones count from behind."""
    batch = x.ndim - len(last)
    return _BATCH[len(_BATCH) - batch :] + last


def matmul(record: Record, call: Call) -> Tensor | Unknown:
    """a[..., i, k] b[..., k, j], or a vector b[k]."""
    first, second = call.touched
    ends = ("ik", "kj", "ij") if second.ndim > 1 else ("ik", "k", "i")
    widest = first if first.ndim >= second.ndim else second
    output = letters(widest, "ij") if second.ndim > 1 else letters(first, "ik")[:-1]
    return _product(record, call, (letters(first, ends[0]), letters(second, ends[1])), output)


def einsum(record: Record, call: Call) -> Tensor | Unknown:
    """Of two tensors, all of whose dimensions have letters."""
    inputs, _, output = str(call.args[0]).replace(" ", "").partition("->")
    first, _, second = inputs.partition(",")
    if [len(first), len(second)] != [x.ndim for x in call.touched] or "." in inputs or not output:
        return record.stop(call.node, call.touched, f"{call.node.name}: einsum mixes channels, or is not known")
    return _product(record, call, (first, second), output)


def _product(record: Record, call: Call, named: tuple[str, str], output: str) -> Tensor | Unknown:
    first, second = _firm(record, call, named, output)
    made = contracted(record, (first, second), named, output)
    if made is None:
        note_stuck(record, call.node)
        return record.stop(call.node, call.touched, f"{call.node.name}: {MIXED}")
    if (summed := _varying(compact(first), named[0])) and summed not in output:
        places = [place for place, one in enumerate(call.args) if isinstance(one, Tensor)]
        record.sums[call.node.name] = dict(zip(places, (compact(first), compact(second)), strict=True))
    return made


def _firm(record: Record, call: Call, named: tuple[str, str], output: str) -> list[Tensor]:
    """The labels of the arguments. A table of positions that is multiplied with channels has them along the dimension
    that is summed over, or none."""
    pair = list(call.touched)
    for place, free in enumerate(call.loose):
        own, table, other = named[place], pair[place], pair[1 - place]
        if not free or call.loose[1 - place]:
            continue
        summed = _varying(compact(other), named[1 - place])
        if len(summed) == 1 and summed in own and summed not in output:
            vector = compact(other).flatten().view([-1 if letter == summed else 1 for letter in own])
            record.labels.unite(vector.expand(table.shape), table)
            pair[place] = vector.expand(table.shape)
        else:
            record.freeze([table], f"{call.node.name}: it is the same for all channels")
            pair[place] = record.frozen(table.shape, f"{call.node.name}: it is the same for all channels")
    return pair


def contracted(record: Record, pair: tuple[Tensor, Tensor], named: tuple[str, str], output: str) -> Tensor | None:
    """Labels of the sum over all letters that `output` does not have; None where they cannot be followed.

    Each argument has channels along one letter at most. What is summed over, or a letter of both, is united; a letter
    of one argument alone goes on, if the other one has no channels.
    """
    sizes: dict[str, int] = {}
    for x, own in zip(pair, named, strict=True):
        for letter, size in zip(own, x.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    shape = [sizes[letter] for letter in output]
    narrow = [compact(x) for x in pair]
    found = [_varying(x, own) for x, own in zip(narrow, named, strict=True)]
    vectors = [x.flatten() for x in narrow]
    if any(len(one) > 1 for one in found):
        return None
    both = set(found) - {""}
    if not both:
        return record.frozen(tuple(shape), "it has no channels")
    if len(both) > 1:
        return None
    (letter,) = both
    if "" not in found:
        if letter not in output and not (letter in named[0] and letter in named[1]):
            return None
        record.labels.unite(*vectors)
        (record.heads if letter in output else record.positions).append(vectors[0])
    else:
        place = found.index(letter)
        other, own = pair[1 - place], named[1 - place]
        if letter not in output or (letter in own and other.shape[own.index(letter)] > 1):
            return None
        (record.heads if letter in named[0] and letter in named[1] else record.positions).append(vectors[place])
        vectors = [vectors[place]]
    if letter not in output:
        return record.frozen(tuple(shape), "it has no channels")
    view = [sizes[one] if one == letter else 1 for one in output]
    return vectors[0].view(view).expand(shape)


def _varying(narrow: Tensor, own: str) -> str:
    return "".join(letter for letter, size in zip(own, narrow.shape, strict=True) if size > 1)
