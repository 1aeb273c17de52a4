"""Python text as a formatter leaves it: calls on one line where they fit, else an argument a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

WIDTH = 88  # of lines, the narrowest that formatters are commonly set to
_INDENT = 4


@dataclass(frozen=True)
class Brackets:
    """A call, a list, a tuple, a mapping, or an index. items: of what is inside, what stands before it, and itself."""

    opening: str
    items: Sequence[tuple[str, "Text"]]
    closing: str = ")"


Text = str | Brackets


def flat(text: Text) -> str:
    """On one line."""
    if isinstance(text, str):
        return text
    inside = ", ".join(before + flat(item) for before, item in text.items)
    comma = "," if text.opening == "(" and text.closing == ")" and len(text.items) == 1 else ""
    return f"{text.opening}{inside}{comma}{text.closing}"


def lines(text: Text, indent: int, before: str = "", behind: str = "") -> list[str]:
    """The lines of a statement, or of a part of one. indent: in levels."""
    space = " " * (_INDENT * indent)
    one = f"{space}{before}{flat(text)}{behind}"
    if len(one) <= WIDTH or isinstance(text, str) or not text.items:
        return [one]
    inside = [line for name, item in text.items for line in lines(item, indent + 1, name, ",")]
    return [f"{space}{before}{text.opening}", *inside, f"{space}{text.closing}{behind}"]


def statement(text: Text, indent: int, before: str = "") -> list[str]:
    """The lines of a statement. A long call of what stands in brackets itself, self.blocks[0].attention, is made of a
    variable, since formatters would break it elsewhere."""
    made = lines(text, indent, before)
    if len(made) == 1 or isinstance(text, str) or "[" not in text.opening[:-1]:
        return made
    return [*steps(text.opening[:-1], indent, "f"), *lines(Brackets("f(", text.items, text.closing), indent, before)]


def steps(path: str, indent: int, name: str) -> list[str]:
    """Statements that give a path such as self.blocks[0].attention a name, of which no line is too long."""
    room = WIDTH - _INDENT * indent - len(f"{name} = ")
    cut = path.rfind("].", 0, room) + 1 if len(path) > room else 0
    if not cut:
        return lines(path, indent, f"{name} = ")
    return [*lines(path[:cut], indent, f"{name} = "), *steps(f"{name}{path[cut:]}", indent, name)]


def quoted(text: str) -> str:
    """The text as a literal in double quotes that no character of it can end."""
    escaped = ascii(text)[1:-1].replace("\\'", "\\x27").replace("'", "\\x27").replace('"', "\\x22")
    return f'"{escaped}"'


def number(value: float) -> str:
    """A bool, an int or a float."""
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    return repr(value)
