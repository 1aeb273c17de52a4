"""Arguments of nodes and options of modules as plain data: what JSON lacks is a mapping with one key that names it."""

from collections.abc import Mapping
from typing import Any

from torch import fx

from compresskit.graph.format.allowed import CONSTANTS

_NAME_OF = {constant: name for name, constant in CONSTANTS.items()}


def encode(value: Any) -> Any:
    """`value` as None, bool, int, float, str, lists and mappings. Raises ValueError for any other kind than below."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return {"dict": [[key, encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    if value is Ellipsis:
        return {"ellipsis": None}
    if value.__hash__ and value in _NAME_OF:
        return {"constant": _NAME_OF[value]}
    raise ValueError(f"{value!r} of type {type(value).__name__}")


def decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The inverse of `encode`, with nodes by their names. Raises ValueError for what `encode` does not make."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [decode(item, nodes) for item in value]
    if type(value) is not dict or len(value) != 1:
        raise ValueError(f"{value!r} stands for no argument")
    [(kind, content)] = value.items()
    match kind:
        case "node" if content in nodes:
            return nodes[content]
        case "tuple" if type(content) is list:
            return tuple(decode(item, nodes) for item in content)
        case "dict" if type(content) is list and all(_is_item(item) for item in content):
            return {key: decode(item, nodes) for key, item in content}
        case "slice" if type(content) is list and len(content) == 3:
            return slice(*(decode(item, nodes) for item in content))
        case "ellipsis":
            return Ellipsis
        case "constant" if content in CONSTANTS:
            return CONSTANTS[content]
    raise ValueError(f"{value!r} stands for no argument")


def _is_item(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and type(value[0]) in (str, int)
