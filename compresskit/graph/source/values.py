"""Plain data of a checkpoint's graph as Python text: arguments of calls, and the calls themselves."""

from collections.abc import Callable, Sequence
from typing import Any

from compresskit.graph.source.layout import Brackets, Text, flat, number, quoted

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "matmul": "@",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and_": "&", "or_": "|", "xor": "^",
}  # fmt: skip
_PREFIX = {"neg": "-", "pos": "+", "inv": "~", "invert": "~", "not_": "not "}
_SHORT = 60  # characters of an expression that surely stays on its line
IN_PLACE = {"iadd": "+=", "isub": "-=", "imul": "*=", "itruediv": "/="}

Named = Callable[[str], str]  # by the name of a node, the text that reads its value


def value(encoded: Any, named: Named) -> Text:
    """An argument, as `graph.format.values.encode` has it."""
    if encoded is None or isinstance(encoded, bool | int | float):
        return number(encoded) if encoded is not None else "None"
    if isinstance(encoded, str):
        return quoted(encoded)
    if isinstance(encoded, list):
        return Brackets("[", [("", value(item, named)) for item in encoded], "]")
    [(kind, content)] = encoded.items()
    match kind:
        case "node":
            return named(content)
        case "tuple":
            return Brackets("(", [("", value(item, named)) for item in content])
        case "dict":
            return Brackets("{", [(f"{flat(value(key, named))}: ", value(item, named)) for key, item in content], "}")
        case "slice":
            return Brackets("slice(", [("", value(item, named)) for item in content])
        case "ellipsis":
            return "..."
    return f"torch.{content}"  # a constant, of the closed list


def arguments(args: Sequence[Any], kwargs: dict[str, Any], named: Named) -> list[tuple[str, Text]]:
    """Of a call."""
    return [("", value(arg, named)) for arg in args] + [(f"{key}=", value(arg, named)) for key, arg in kwargs.items()]


def function(target: str, args: Sequence[Any], kwargs: dict[str, Any], named: Named) -> Text:
    """A call of a function of the closed list."""
    home, _, name = target.rpartition(".")
    given = arguments(args, kwargs, named)
    if target == "getattr":
        return f"{flat(given[0][1])}.{args[1]}"
    if home == "operator":
        return _operator(name, args, given, named)
    short = {"torch.nn.functional": "F.", "torch": "torch."}.get(home, "")
    return Brackets(f"{short}{name}(", given)


def _operator(name: str, args: Sequence[Any], given: list[tuple[str, Text]], named: Named) -> Text:
    operands = [text for _, text in given]
    plain = [operand for operand in operands if isinstance(operand, str) and len(operand) < _SHORT]
    if name == "getitem" and isinstance(operands[0], str):
        found = Brackets(f"{operands[0]}[", _places(args[1], named), "]")
        return found if len(flat(found)) < _SHORT else Brackets("operator.getitem(", given)
    if len(plain) == len(operands):
        if name in _INFIX and len(operands) == 2 and sum(map(len, plain)) < _SHORT:
            return f"{plain[0]} {_INFIX[name]} {plain[1]}"
        if name in _PREFIX and plain[0].isidentifier():
            return f"{_PREFIX[name]}{plain[0]}"
    return Brackets(f"{name}(" if name in ("abs", "pow") else f"operator.{name}(", given)


def _places(index: Any, named: Named) -> list[tuple[str, Text]]:
    """What stands in the brackets behind a value."""
    if isinstance(index, dict) and "tuple" in index and len(index["tuple"]) > 1:
        return [("", _place(item, named)) for item in index["tuple"]]
    return [("", _place(index, named))]


def _place(index: Any, named: Named) -> Text:
    if not (isinstance(index, dict) and "slice" in index):
        return value(index, named)
    start, stop, step = ("" if part is None else flat(value(part, named)) for part in index["slice"])
    simple = all(part.lstrip("-").isalnum() for part in (start, stop, step) if part)
    if not simple:
        return value(index, named)
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
