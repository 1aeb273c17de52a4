"""What a command found out, as plain data: the report renders it, and knows nothing else of the command."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compresskit.mishaps import told

Format = Literal["number", "count", "bytes", "ms"]
NONZERO, SPARSE = "parameters not masked", "MACs by weights not masked"  # names of figures of masked nets


def by(shape: tuple[int, ...] | None) -> str:
    """A shape as tables show it: 16×8×3×3; nothing where there is none."""
    return "×".join(map(str, shape)) if shape else ""


def alike(rows: Iterable[tuple[str, tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """(names, their number, *figures) of all layers with the same figures; rows: a name and figures of each."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for name, figures in rows:
        names.setdefault(figures, []).append(name)
    return [(shortened(found), len(found), *figures) for figures, found in names.items()]


def counted(number: int, what: str) -> str:
    """1 layer, 2 layers."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def shortened(names: Sequence[str]) -> str:
    """All names if they are few, else the first two and the last."""
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"


def tuples(value: Any) -> Any:
    """What was tuples before JSON made lists of them."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Figure:
    """A quantity before and after the command, one value a trial; `before` is empty where there was nothing before."""

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    format: Format = "number"


@dataclass(frozen=True)
class Table:
    """Rows under columns. A tuple of numbers in a cell holds one value a trial. colours: of the rows, on a terminal."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    colours: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A figure that the recipe asked for, and what came of it."""

    name: str
    asked: str
    got: str
    met: bool


@dataclass
class Result:
    """The whole of a report.

    folder: where files were written, None if nothing was. skipped: by layer, the reason why it was left alone.
    failed: by job, what stopped it, where others did not fail.
    checks: by name, the largest difference found on one batch after a step that claims to keep the function.
    details: what only report.json holds, under stable keys.
    """

    verb: str
    title: str
    folder: Path | None = None
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    checks: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON-able form, the content of report.json."""
        failed = {name: told(error, self.verb) for name, error in self.failed.items()}
        folder = str(self.folder) if self.folder else None
        return asdict(replace(self, failed={})) | {"folder": folder, "failed": failed}
