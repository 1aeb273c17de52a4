"""`key.sub=value` and `~key.sub` of the command line, applied to the values of a recipe before they are checked."""

from collections.abc import Iterable
from typing import Any

from compresskit.recipes.problems import Key, Problem, dotted, shown, suggestion
from compresskit.recipes.yaml_reader import Node, UnreadableError, read_yaml


def apply_overrides(root: Node, overrides: Iterable[str]) -> list[Problem]:
    """Changes the values below `root`, in order; returns what could not be applied."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            if override.startswith("~"):
                _drop(root, _split(override[1:], override))
            else:
                problems += _assign(root, override)
        except UnreadableError as refused:
            problems.append(refused.problem)
    return problems


def _assign(root: Node, override: str) -> list[Problem]:
    path, equals, text = override.partition("=")
    if not equals:
        raise _refusal((override,), "an override is written key=value, or ~key to drop a key")
    key = _split(path, override)
    try:
        value, problems = read_yaml(text)
    except UnreadableError as error:
        raise _refusal(key, error.problem.text) from error
    holder, slot = _locate(root, key, create=True)
    holder[slot] = _without_lines(value)
    return [_refusal((*key, *problem.key), "given twice").problem for problem in problems]


def _drop(root: Node, key: Key) -> None:
    holder, slot = _locate(root, key, create=False)
    del holder[slot]


def _locate(root: Node, key: Key, create: bool) -> tuple[Any, str | int]:
    """The dict or list that holds the last part of `key`, and the slot there; `create` makes the mappings between."""
    node: Any = root
    for depth, part in enumerate(key):
        if create and node.value is None:
            node.value = {}
        elif create and isinstance(node.value, str):  # `optimizer: sgd` is short for `optimizer: {kind: sgd}`
            node.value = {"kind": Node(node.value, node.line)}
        slot = _slot(node, key[: depth + 1], create)
        if depth == len(key) - 1:
            break
        if create and isinstance(node.value, dict):
            node.value.setdefault(str(part), Node({}))
        node = node.value[slot]
    return node.value, slot


def _slot(node: Node, key: Key, create: bool) -> str | int:
    """Name or index of the last part of `key` in `node`, which the rest of `key` has led to."""
    part = str(key[-1])
    if isinstance(node.value, list):
        if part.isdecimal() and int(part) < len(node.value):
            return int(part)
        raise _refusal(key, f"no such item; '{dotted(key[:-1])}' has {len(node.value)}, counted from 0")
    if not isinstance(node.value, dict):
        raise _refusal(key, f"'{dotted(key[:-1])}' is {shown(node.plain())}, which has no keys")
    if not create and part not in node.value:
        raise _refusal(key, f"cannot be dropped: not in the recipe{suggestion(part, list(node.value))}")
    return part


def _split(path: str, override: str) -> Key:
    parts = path.split(".")
    if not all(parts):
        raise _refusal((override,), "a part of the key is empty")
    return tuple(parts)


def _without_lines(node: Node) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _without_lines(child) for key, child in node.value.items()})
    return Node([_without_lines(child) for child in node.value] if isinstance(node.value, list) else node.value)


def _refusal(key: Key, text: str) -> UnreadableError:
    return UnreadableError(Problem(text, None, key))
