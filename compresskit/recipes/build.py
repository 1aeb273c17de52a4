"""Values of a recipe to option classes, with every mistake collected. Home of pydantic, which checks single values.

The structure is walked here, not by pydantic: annotations of option classes are plain unions, so that the floors below
need not know pydantic, and for a plain union pydantic would report the mistakes of every member at once.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from math import isfinite
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from compresskit.recipes.hints import (
    bare,
    default_kind,
    keys_of,
    kinds,
    literals,
    members,
    option_class,
    required_keys,
    takes,
    words,
)
from compresskit.recipes.problems import Key, Problem, shown, suggestion
from compresskit.recipes.yaml_reader import Node

OWN = "factory"  # the kind of what the user wrote: `package.module:name` for short
_INVALID: Any = object()  # stands for a value whose problem has been noted


def build(schema: Any, root: Node) -> tuple[Any, list[Problem]]:
    """The `schema` instance that `root` describes, and the problems found; where there are any, no instance."""
    builder = _Builder()
    return builder.build(schema, root, ()), builder.problems


class _Builder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def build(self, hint: Any, node: Node, key: Key) -> Any:
        """The value at `key` as the annotation `hint` has it."""
        value, choice, cls = node.value, kinds(hint), option_class(hint)
        if value is None and (choice or cls) and NoneType not in members(hint):
            value = {}  # a section that is left empty takes its defaults
        if isinstance(value, dict) and choice:
            default = default_kind(hint)
            if "kind" not in value and default is not None:
                return self._option(choice[default], value, node, key)
            return self._choice(choice, value, node, key)
        if isinstance(value, dict) and cls:
            return self._option(cls, value, node, key)
        fitting = [member for member in members(hint) if takes(member, value)]
        if isinstance(value, str) and choice and (value in choice or not fitting):
            return self._choice(choice, {"kind": node}, node, key, short=True)
        if isinstance(value, dict) and fitting:
            return self._mapping(fitting[0], value, key)
        if isinstance(value, list) and fitting:
            return self._list(fitting[0], value, node, key)
        return self._scalar(hint, fitting, node, key)

    def _choice(
        self, choice: dict[str, type], value: dict[str, Node], node: Node, key: Key, short: bool = False
    ) -> Any:
        """An option class named by its `kind`; `short`: the kind is all that was written."""
        if "kind" not in value:
            return self._problem(f"the key 'kind' is missing; allowed: {', '.join(choice)}", node, key)
        kind = value["kind"]
        if OWN in choice and "target" not in value and _names_code(kind.value, choice):
            value, kind = value | {"target": kind}, Node(OWN, kind.line)
        if not isinstance(kind.value, str) or kind.value not in choice:
            return self._problem(_unknown("kind", kind.plain(), choice), kind, key if short else (*key, "kind"))
        return self._option(choice[kind.value], value | {"kind": kind}, node, key)

    def _option(self, cls: type, value: dict[str, Node], node: Node, key: Key) -> Any:
        hints = keys_of(cls)
        values = {name: self.build(hints[name], child, (*key, name)) for name, child in value.items() if name in hints}
        elsewhere = getattr(cls, "ELSEWHERE", {})  # keys of other classes, and how to get there
        for name in [name for name in value if name not in hints]:
            text = _unknown("key", name, hints) + (f"; {elsewhere[name]}" if name in elsewhere else "")
            values[name] = self._problem(text, value[name], (*key, name))
        for name in [name for name in required_keys(cls) if name not in value]:
            values[name] = self._problem(f"the key '{name}' is missing; it must be {words(hints[name])}", node, key)
        if not _valid(values.values()):
            return _INVALID
        try:
            return cls(**values)
        except ValueError as error:  # a rule across keys, stated in the class's __post_init__
            return self._broken_rule(str(error), value, node, key)

    def _mapping(self, hint: Any, value: dict[str, Node], key: Key) -> Any:
        item = get_args(bare(hint))[1] if get_args(bare(hint)) else Any
        values = {name: self.build(item, child, (*key, name)) for name, child in value.items()}
        return values if _valid(values.values()) else _INVALID

    def _list(self, hint: Any, value: list[Node], node: Node, key: Key) -> Any:
        """A tuple; a list where the annotation allows anything, so that the value stays plain data."""
        items = get_args(bare(hint)) or (Any, ...)
        if items[-1] is ...:
            items = items[:1] * len(value)
        ranges = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if len(items) != len(value) or (ranges and not _long_enough(value, ranges)):
            return self._problem(f"must be {words(hint)}, given {shown(node.plain())}", node, key)
        values = [self.build(item, child, (*key, i)) for i, (item, child) in enumerate(zip(items, value, strict=True))]
        if not _valid(values):
            return _INVALID
        return values if hint is Any else tuple(values)

    def _scalar(self, hint: Any, fitting: list[Any], node: Node, key: Key) -> Any:
        value = node.plain()
        if isinstance(value, float) and not isfinite(value):
            return self._problem(f"must be a finite number, given {shown(value)}", node, key)
        if fitting:
            try:
                return _adapter(Union[tuple(fitting)]).validate_json(json.dumps(value))  # noqa: UP007
            except ValidationError:  # said in our words below, which name every alternative
                pass
        remedy = suggestion(value, [*literals(hint), *kinds(hint)])
        if {str} == {*map(bare, members(hint))} - {NoneType} and isinstance(value, bool | int | float):
            remedy = "; put it in quotes"
        return self._problem(f"must be {words(hint)}, given {shown(value)}{remedy}", node, key)

    def _broken_rule(self, text: str, value: dict[str, Node], node: Node, key: Key) -> Any:
        """`schedule.warmup: too long` is said of that key, where the recipe has it, else of the section."""
        head, colon, rest = text.partition(": ")
        names = head.split(".")
        if not colon or names[0] not in value:
            return self._problem(text, node, key)
        section = node
        for name in names:
            node = node.value.get(name, node) if isinstance(node.value, dict) else node
        if node.inherited and not section.inherited:  # what the section itself says does not go with it
            return self._problem(text, section, key)
        return self._problem(rest, node, (*key, *names))

    def _problem(self, text: str, node: Node, key: Key) -> Any:
        if not node.inherited:  # else it is told where it stands
            self.problems.append(Problem(text, node.line, key))
        return _INVALID


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Strict, so that `true` and `"3"` are no numbers; from JSON, so that an integer is a number all the same."""
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _long_enough(value: list[Node], ranges: Sequence[Any]) -> bool:
    try:
        _adapter(Annotated[list[Any], *ranges]).validate_json(json.dumps([0] * len(value)))
    except ValidationError:
        return False
    return True


def _names_code(kind: Any, choice: Iterable[str]) -> bool:
    """Whether it is `package.module:name`; a kind before the colon is a library of models."""
    return isinstance(kind, str) and ":" in kind and kind.partition(":")[0] not in choice


def _unknown(what: str, given: Any, allowed: Iterable[str]) -> str:
    near = suggestion(given, list(allowed)) or ";"
    return f"unknown {what}{'' if what == 'key' else ' ' + shown(given)}{near} allowed: {', '.join(allowed)}"


def _valid(values: Iterable[Any]) -> bool:
    return all(value is not _INVALID for value in values)
