"""Tables of a page: cells that sort by numbers and may link somewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compresskit.page.text import cell, sort_key

OPEN = 16  # rows of a table that is not folded


@dataclass(frozen=True)
class Cell:
    """text: what is shown. key: the number it sorts by, None where it is a text. href: where it leads, if anywhere."""

    text: str
    key: float | None = None
    href: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table; one of many rows is folded until somebody opens it."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Of each column whether it holds numbers, and nothing else but empty cells."""
        columns = [[row[place] for row in self.rows] for place in range(len(self.columns))]
        return [
            any(c.key is not None for c in own) and all(c.key is not None or not c.text for c in own) for own in columns
        ]

    @property
    def is_open(self) -> bool:
        return len(self.rows) <= OPEN


def sheet(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Sheet:
    """A table of values; those that are cells already stay as they are."""
    return Sheet(title, tuple(columns), [[_cell(value) for value in row] for row in rows])


def _cell(value: Any) -> Cell:
    return value if isinstance(value, Cell) else Cell(cell(value), sort_key(value))
