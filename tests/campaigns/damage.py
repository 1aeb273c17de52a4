"""Damage by seed: bytes that change, and contents that change inside of a file that is whole again."""

import copy
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch


def bytes_damaged(content: bytes, draw: random.Random) -> bytes:
    """Flipped bits, a cut, zeros, doubled or swapped parts, or other bytes put in."""
    if not content:
        return b"\0"
    place = draw.randrange(len(content))
    length = draw.choice((1, 8, 64, 4096))
    part = content[place : place + length]
    kinds: list[Callable[[], bytes]] = [
        lambda: _flipped(content, draw),
        lambda: content[:place],
        lambda: content[:place] + bytes(len(part)) + content[place + length :],
        lambda: content[:place] + part + content[place:],
        lambda: content[:place] + content[place + length :],
        lambda: content[:place] + draw.randbytes(length) + content[place:],
        lambda: part + content,
    ]
    return draw.choice(kinds)()


def _flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 4, 40))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3, 7, 10**9, 2**63, 2**70, -(2**63), 0.0, -1.5, 1e300, math.nan, math.inf, "", "x",
    "conv1", "relu", "Conv2d", "torch.mul", "os.system", "../x", "\0", "x" * 10_000, [], {}, [[]], [1, 2], {"a": 1},
    {1: 2}, [None], (1, (2, (3,))),
)  # fmt: skip


def content_damaged(content: Any, draw: random.Random) -> Any:
    """A copy of plain data and tensors with one to three places changed; it may be nested too deeply to be copied."""
    changed = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path = draw.choice(list(_places(changed)) or [()])
        if not path:
            return draw.choice(STRANGE)
        *way, last = path
        parent = changed
        for key in way:
            parent = parent[key]
        _change(parent, last, draw)
    return changed


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Ways to every value in it."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        if len(path) < 20:  # what is nested deeper is damage itself
            yield from _places(item, (*path, key))


def _change(parent: Any, key: Any, draw: random.Random) -> None:
    value = parent[key]
    kinds: list[Callable[[], None]] = [
        lambda: parent.__setitem__(key, draw.choice(STRANGE)),
        lambda: parent.__delitem__(key),
        lambda: parent.__setitem__(key, [value]),
        lambda: parent.__setitem__(key, _deep(draw.choice((50, 2_000)))),
    ]
    if isinstance(value, torch.Tensor):
        kinds = [lambda: parent.__setitem__(key, _tensor_damaged(value, draw))] * 6 + kinds
    elif isinstance(value, int | float) and not isinstance(value, bool):
        kinds += [lambda: parent.__setitem__(key, draw.choice((value + 1, -value, value * 1_000_003, value / 3)))] * 3
    elif isinstance(value, str):
        kinds += [lambda: parent.__setitem__(key, value[::-1]), lambda: parent.__setitem__(key, value + "x")]
    if isinstance(parent, dict):
        kinds.append(lambda: parent.__setitem__(draw.choice((f"{key}x", 3, None, "")), parent.pop(key)))
        others = [other for other in parent if other != key]
        if others:
            other = draw.choice(others)
            kinds.append(lambda: parent.update({key: parent[other], other: parent[key]}))
    draw.choice(kinds)()


def _deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


def _tensor_damaged(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
    if tensor.is_quantized or tensor.is_sparse or tensor.is_meta:
        return torch.zeros(())  # it was damaged before
    whole = tensor.reshape(-1)
    kinds: list[Callable[[], torch.Tensor]] = [
        lambda: tensor[None],
        lambda: whole,
        lambda: whole[: draw.randrange(len(whole) + 1)],
        lambda: tensor.to(draw.choice((torch.half, torch.bfloat16, torch.double, torch.complex64, torch.int64,
                                       torch.uint8, torch.bool, torch.float8_e4m3fn))),
        lambda: tensor.double() * draw.choice((math.nan, math.inf, 1e300, 0.0)),
        lambda: tensor.to_sparse() if tensor.ndim else tensor,
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    ]  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # torch's, of kinds of tensors that go out of use
        return draw.choice(kinds)()


TRAPS = (
    "nan", "-1", "0", "1e400", "10**9", "99999999999999999999", "no", "null", "[]", "{}", "*a", "&a x", "'", '"', "\t",
    "}", "!!python/object:os.system x", "{kind: os:system}", "os:system", "-.inf", "1.5", "x" * 5_000, "[" * 500,
    "é\u202e", "~", "<<: *a", "2**64", "18446744073709551616",
)  # fmt: skip


def text_damaged(text: str, draw: random.Random) -> str:
    """A recipe with words, numbers, indents or lines changed, or traps of YAML put in."""
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    word = draw.choice(TRAPS)
    words = lines[place].split(" ")
    spot = draw.randrange(len(words))

    def put(replacement: list[str]) -> str:
        return "\n".join(lines[:place] + replacement + lines[place + 1 :])

    kinds: list[Callable[[], str]] = [
        lambda: put([" ".join([*words[:spot], word, *words[spot + 1 :]])]),
        lambda: put([" ".join([*words[:spot], word, *words[spot:]])]),
        lambda: put([" ".join(words[:spot] + words[spot + 1 :])]),
        lambda: put([]),
        lambda: put([lines[place], lines[place]]),
        lambda: put([" " * draw.randrange(9) + lines[place]]),
        lambda: put([lines[place].replace(":", draw.choice(("", "::", " :", ": -", "=")), 1)]),
        lambda: _flipped(text.encode(), draw).decode(errors="replace"),
        lambda: text[: draw.randrange(len(text))],
        lambda: put([lines[place][: draw.randrange(len(lines[place]) + 1)]]),
    ]
    return draw.choice(kinds)()
