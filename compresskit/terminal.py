"""Tables on a terminal: drawn whole, with long texts wrapped, or a block for each row, by what its width allows."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from compresskit.commands.result import Table

LONGEST = 32  # characters of a word that is never broken: a longer one (a path, the name of a deep layer) may be
_FRAME = 3  # characters that a table takes for each column beside its text, and one more
_BETWEEN = "   "  # entries of a block that share a line


def drawn(table: Table, cell: Callable[[Any], str], width: int) -> RenderableType:
    """The table for a terminal of so many characters a line. cell: text of a value.

    As it is where it fits. Else its widest columns are narrowed, one character at a time, as far as their words allow:
    texts wrap between words, and numbers and shapes stay whole. Where that does not fit either, each row becomes a
    block, its first cell the head, with `column: value` behind each other.
    """
    rows = [[cell(value) for value in row] for row in table.rows]
    columns = list(zip(table.columns, *rows, strict=True))
    numeric = [all(_is_number(row[column]) for row in table.rows) for column in range(len(table.columns))]
    widths = _fitted(
        [max(map(cell_len, texts)) for texts in columns],
        [max(map(_least, texts)) for texts in columns],
        width - _FRAME * len(columns) - 1,
    )
    if widths is None:
        return _blocks(table, rows, width)
    found = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for name, is_numeric, chosen in zip(table.columns, numeric, widths, strict=True):
        found.add_column(escape(name), justify="right" if is_numeric else "left", overflow="fold", width=chosen)
    for texts, colour in zip_longest(rows, table.colours):
        found.add_row(*map(escape, texts), style=colour)
    return found


def _fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns that fit into `room` together, None where there are none."""
    widths = list(natural)
    while sum(widths) > room:
        wide = [column for column, width in enumerate(widths) if width > least[column]]
        if not wide:
            return None
        widths[max(wide, key=lambda column: widths[column])] -= 1
    return widths


def _least(text: str) -> int:
    """Characters of a line that the text needs: all of a number with its unit or deviation, else its longest word."""
    words = [text] if text[:1].isdigit() or text[:1] in "-+" else text.split()
    return min(LONGEST, max(map(cell_len, words), default=0))


def _blocks(table: Table, rows: Sequence[Sequence[str]], width: int) -> RenderableType:
    parts: list[RenderableType] = [Text(table.title, style="bold")]
    for (head, *texts), colour in zip_longest(rows, table.colours):
        parts.append(Text(head or table.columns[0], style=f"bold {colour or ''}".strip()))
        entries = [
            f"{name}: {text}".removeprefix(": ") for name, text in zip(table.columns[1:], texts, strict=True) if text
        ]
        parts.append(Padding(Text("\n".join(_lines(entries, width - 2)), overflow="fold"), (0, 0, 0, 2)))
    return Group(*parts, "")


def _lines(entries: Sequence[str], width: int) -> list[str]:
    """Entries behind each other, as many in a line as fit."""
    lines: list[str] = []
    for entry in entries:
        together = lines[-1] + _BETWEEN + entry if lines else entry
        if lines and cell_len(together) <= width:
            lines[-1] = together
        else:
            lines.append(entry)
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | tuple)
