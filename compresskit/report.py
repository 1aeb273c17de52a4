"""A result as a table on the terminal, as report.json and as report.md; and progress while it is made. Home of rich."""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from compresskit.commands.result import Figure, Format, Result, Table
from compresskit.storage.run_folder import RunFolder
from compresskit.terminal import drawn

WIDTH_WITHOUT_TERMINAL = 160


def publish(result: Result, *, as_json: bool, quiet: bool) -> None:
    """Writes report.json and report.md where the command wrote its files; prints the table, or the JSON."""
    if result.folder is not None:
        folder = RunFolder(result.folder)
        folder.write_text("report.json", to_json(result))
        folder.write_text("report.md", markdown(result))
    if as_json:
        sys.stdout.write(to_json(result))
    elif not quiet:
        console = _Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
        show(result, console)


class _Console(Console):
    """Leaves it to the command line what becomes of a pipe that nobody reads any more; rich would end with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def to_json(result: Result) -> str:
    return json.dumps(_jsonable(result.plain()), indent=2, allow_nan=False) + "\n"


def _jsonable(value: Any) -> Any:
    """JSON has neither infinity nor NaN: null stands for what is not finite."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(result: Result, console: Console) -> None:
    console.print(f"[bold]{escape(result.verb)}[/] {escape(result.title)}", highlight=False)
    for table in _all_tables(result):
        console.print(drawn(table, cell, console.width))
    for line in _lines(result):
        console.print(escape(line), highlight=False)


def markdown(result: Result) -> str:
    """The same as GitHub-flavoured Markdown, for a pull request."""
    parts = [f"# {result.verb} {result.title}"]
    for table in _all_tables(result):
        header = f"| {' | '.join(table.columns)} |\n|{' --- |' * len(table.columns)}"
        rows = [f"| {' | '.join(cell(value).replace('|', '/') for value in row)} |" for row in table.rows]
        parts.append("\n".join([f"**{table.title}**\n", header, *rows]))
    parts += [f"- {line}" for line in _lines(result)]
    return "\n\n".join(parts) + "\n"


def cell(value: Any) -> str:
    """Text of a cell: numbers to four digits, one value a trial as mean ± standard deviation."""
    if isinstance(value, tuple):
        return spread(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _number(value)
    return "" if value is None else str(value)


def spread(values: Sequence[float | None]) -> str:
    """`mean ± standard deviation` of several trials (n - 1 in the denominator), the value itself of one."""
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return _number(statistics.fmean(numbers)) if numbers else ""
    mean, deviation = statistics.fmean(numbers), statistics.stdev(numbers)
    if abs(mean) < 10:
        return f"{mean:.4f} ± {deviation:.4f}"
    return f"{mean:,.4g} ± {deviation:.2g}"


def _all_tables(result: Result) -> list[Table]:
    tables = []
    if result.figures:
        compared = any(figure.before for figure in result.figures)
        columns = ("", "before", "after", "after / before") if compared else ("", "value")
        rows = [_figure_row(figure, compared) for figure in result.figures]
        tables.append(Table("result", columns, rows))
    tables += [table for table in result.tables if table.rows]
    if result.targets:
        rows = [(t.name, t.asked, t.got, "met" if t.met else "MISSED") for t in result.targets]
        tables.append(Table("targets", ("target", "asked", "got", ""), rows))
    if result.skipped:
        tables.append(Table("left alone", ("what", "why"), list(result.skipped.items())))
    return tables


def _figure_row(figure: Figure, compared: bool) -> tuple[str, ...]:
    after = _formatted(figure.after, figure.format)
    if not compared:
        return figure.name, after
    if not figure.before:
        return figure.name, "", after, ""
    before, now = statistics.fmean(figure.before), statistics.fmean(figure.after)
    ratio = f"{now / before:.3f}" if before else ""
    return figure.name, _formatted(figure.before, figure.format), after, ratio


def _formatted(values: tuple[float, ...], form: Format) -> str:
    if form == "number" or len(set(values)) > 1:
        scaled = tuple(value / 1e3 for value in values) if form == "bytes" else values
        return spread(scaled) + _UNITS[form]
    if form == "count":
        return f"{values[0]:,.0f}"
    return f"{values[0] / 1e3:,.1f}{_UNITS[form]}" if form == "bytes" else f"{values[0]:.3f}{_UNITS[form]}"


_UNITS: dict[Format, str] = {"number": "", "count": "", "bytes": " kB", "ms": " ms"}


def _lines(result: Result) -> list[str]:
    lines = [f"{name}: largest difference {value:.1e}" for name, value in result.checks.items()]
    lines += result.notes
    return [*lines, f"written to {result.folder}"] if result.folder else lines


def _number(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 else f"{value:.4g}"


class TerminalProgress:
    """Bar with rate and time left on standard error; without a terminal, plain lines now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}")
        self._bar = Progress(*columns, note, console=Console(stderr=True), transient=True)
        self._task: TaskID | None = None
        self._description, self._total, self._began, self._said = "", 0, 0.0, 0.0
        self.notes: list[str] = []

    def __enter__(self) -> "TerminalProgress":
        if self._terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._terminal:
            self._bar.stop()

    def start(self, task: str, total: int) -> None:
        self._description, self._total = task, total
        self._began = self._said = time.monotonic()
        if self._terminal:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(escape(task), total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        if self._terminal and self._task is not None:
            self._bar.update(self._task, completed=done, note=escape(note))
        elif not self._quiet and time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            left = (self._said - self._began) * (self._total - done) / max(done, 1)
            self.log(f"{self._description}: {done} of {self._total}, {left:.0f} s left {note}".rstrip())

    def log(self, text: str) -> None:
        if self._terminal:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            sys.stderr.write(text + "\n")

    def note(self, text: str) -> None:
        """Logs it once, and keeps it for the report; `validate` loads the data for each verb."""
        if text not in self.notes:
            self.notes.append(text)
            self.log(f"warning: {text}")
