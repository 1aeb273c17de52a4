"""Names that libraries have changed: tensors of older files, and of newer ones, by the names of the model."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

_SHOWN = 2  # of the renamed tensors in a message


@dataclass(frozen=True)
class _Change:
    """old: pattern of the file's names. put: what they become."""

    what: str
    old: re.Pattern[str]
    put: str


_SPLIT = [re.compile(rf"((?:.*\.)?)(\w+)_{letter}") for letter in "gv"]  # weight_norm: lengths, and directions
_PARAMETRIZED = [re.compile(rf"((?:.*\.)?)parametrizations\.(\w+)\.original{number}") for number in range(2)]
_CHANGES = [
    _Change(
        "DenseNet of torchvision before 0.3",
        re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)"),
        r"\1\2",
    ),
    *(
        _Change("weight_norm of torch before 2.1", old, rf"\1parametrizations.\2.original{number}")
        for number, old in enumerate(_SPLIT)
    ),
    *(
        _Change("weight_norm as a parametrization", old, rf"\1\2_{letter}")
        for letter, old in zip("gv", _PARAMETRIZED, strict=True)
    ),
]


def renamed(wanted: Collection[str], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file under names as the model has them, but for a prefix; what was renamed, in words.

    A tensor whose own name the model has keeps it, and so does one whose new name the file has, too.
    """
    own, endings = set(wanted), {ending for name in wanted for ending in _endings(name)}
    found, notes = dict(state), []
    for change in _CHANGES:
        new = {name: change.old.sub(change.put, name) for name in found if change.old.fullmatch(name)}
        new = {
            name: put
            for name, put in new.items()
            if put not in found and _fits(put, own, endings) and not _fits(name, own, endings)
        }
        if new:
            pairs = [f"{old} to {put}" for old, put in new.items()]
            more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
            notes.append(f"renamed, as of {change.what}: {', '.join(pairs[:_SHOWN])}{more}")
        found = {new.get(name, name): tensor for name, tensor in found.items()}
    return found, notes


def parts_of_norm(missing: Collection[str], surplus: Collection[str]) -> str:
    """What to do where weights are split by weight_norm in the file alone, or in the model alone; "" elsewhere."""
    if _are_split(surplus) and not _are_split(missing):
        return "; the file has its weights split by weight_norm: take the norm off the net before saving, or keep it in"
    if _are_split(missing) and not _are_split(surplus):
        return "; the model splits its weights by weight_norm, which the file does not: put the norm on after loading"
    return ""


def _fits(name: str, own: set[str], endings: set[str]) -> bool:
    """Whether it is a name of the model, but for a prefix of either."""
    return name in endings or any(ending in own for ending in _endings(name))


def _endings(name: str) -> Iterator[str]:
    """The name, and what is left of it behind each of its dots."""
    yield name
    yield from (name[at + 1 :] for at, letter in enumerate(name) if letter == ".")


def _are_split(names: Collection[str]) -> bool:
    """Whether both parts of a weight are among the names, in the old form or in the new one."""
    for form in (_SPLIT, _PARAMETRIZED):
        lengths, directions = ({found.groups() for found in map(part.fullmatch, names) if found} for part in form)
        if lengths & directions:
            return True
    return False
