"""What the annotations of option classes mean to a recipe: members of unions, kinds of choices, words for each."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from pydantic import StringConstraints

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "null", Any: "any value"}


@dataclass(frozen=True, eq=False)  # eq=False: hashed by identity, as a member of unions must be
class Kinds:
    """Marks an annotation as a choice by `kind` among the classes of a registry: `Annotated[Base, Kinds(REGISTRY)]`.

    default: the kind that is meant where none is written.
    """

    registry: Mapping[str, type]
    default: str | None = None


@cache
def keys_of(cls: type) -> dict[str, Any]:
    """The annotation of every key that the option class takes."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def required_keys(cls: type) -> list[str]:
    """The keys without a default."""
    return [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; one for what is no union."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def bare(hint: Any) -> Any:
    """The annotation without its ranges."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def takes(hint: Any, value: Any) -> bool:
    """Whether the member of a union is meant by a value of this form: a mapping, a list, null or another scalar."""
    kind = get_origin(bare(hint)) or bare(hint)
    if is_dataclass(kind) or kind is dict or _member_kinds(hint):
        return isinstance(value, dict)
    if kind is Any:
        return True
    if kind is tuple:
        return isinstance(value, list)
    return value is None if kind is NoneType else not isinstance(value, dict | list | NoneType)


def option_class(hint: Any) -> type | None:
    """The one option class without kinds among the alternatives."""
    plain = [member for member in members(hint) if isinstance(member, type) and is_dataclass(member)]
    return next((cls for cls in plain if "kind" not in keys_of(cls)), None)


def kinds(hint: Any) -> dict[str, type]:
    """The class behind each `kind` that the annotation takes: a registry's, or union members that have a `kind`."""
    return {kind: cls for member in members(hint) for kind, cls in _member_kinds(member).items()}


def default_kind(hint: Any) -> str | None:
    """The kind that is meant where none is written."""
    marks = [mark for member in members(hint) if get_origin(member) is Annotated for mark in get_args(member)[1:]]
    return next((mark.default for mark in marks if isinstance(mark, Kinds)), None)


def _member_kinds(member: Any) -> Mapping[str, type]:
    if get_origin(member) is Annotated:
        return next((mark.registry for mark in get_args(member)[1:] if isinstance(mark, Kinds)), {})
    if isinstance(member, type) and is_dataclass(member) and "kind" in keys_of(member):
        return dict.fromkeys(get_args(keys_of(member)["kind"]), member)
    return {}


def list_items(hint: Any) -> tuple[Any, ...]:
    """The annotations of the items of the lists that the annotation takes."""
    lists = [bare(member) for member in members(hint) if get_origin(bare(member)) is tuple]
    return tuple(item for found in lists for item in get_args(found) if item is not ...)


def mapping_values(hint: Any) -> tuple[Any, ...]:
    """The annotations of the values of the mappings that the annotation takes."""
    return tuple(get_args(bare(member))[1] for member in members(hint) if get_origin(bare(member)) is dict)


def literals(hint: Any) -> list[str]:
    """The words that the annotation takes."""
    found = [word for member in members(hint) if get_origin(member) is Literal for word in get_args(member)]
    return [word for word in found if isinstance(word, str)]


def words(hint: Any) -> str:
    """The annotation in words: `an integer greater than 0, 'auto' or null`."""
    parts = [_member_words(member) for member in members(hint) if not (is_dataclass(member) or _member_kinds(member))]
    if option_class(hint):
        parts.append("a mapping")
    if choice := kinds(hint):
        parts.append(f"of kind {_either(list(choice))}")
    return _either(sorted(parts, key=lambda part: part == "null"))


def _member_words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        base, *ranges = get_args(hint)
        return " ".join([words(base), *filter(None, [_either_range(ranges)])])
    if get_origin(hint) is Literal:
        return _either([repr(word) for word in get_args(hint)])
    if get_origin(hint) is dict:
        return "a mapping"
    if get_origin(hint) is tuple:
        items = get_args(hint)
        size = "" if items[-1] is ... else f" of {len(items)}"
        each = list(dict.fromkeys(words(item) for item in items if item is not ...))
        return f"a list{size} (each: {each[0]})" if len(each) == 1 else f"a list{size} ({', '.join(map(words, items))})"
    return _NAMES.get(hint, str(hint))


def _either_range(ranges: Sequence[Any]) -> str:
    told = [limit for limit in ranges if isinstance(limit, str)]
    return " and ".join(filter(None, map(_range_words, told or ranges)))


def _range_words(limit: Any) -> str:
    match limit:
        case Gt(gt=bound):
            return f"greater than {bound}"
        case Ge(ge=bound):
            return f"at least {bound}"
        case Lt(lt=bound):
            return f"less than {bound}"
        case Le(le=bound):
            return f"at most {bound}"
        case Len(min_length=least, max_length=most):
            return f"of length {least} to {most}" if most is not None else f"of length {least} or more"
        case MinLen(min_length=least):
            return f"of length {least} or more"
        case MaxLen(max_length=most):
            return f"of length {most} or less"
        case StringConstraints(pattern=pattern):
            return f"of the form {pattern}"
        case str(form):  # what stands beside a pattern says it in words
            return form
    return str(limit)


def _either(parts: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
