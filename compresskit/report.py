"""A result on the terminal, as report.json, report.md and report.html; and progress while it is made. Home of rich."""

import json
import logging
import math
import statistics
import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from compresskit.commands.result import Figure, Format, Result, Table
from compresskit.page.sheets import sheet
from compresskit.page.text import cell, spread
from compresskit.storage.record import read_record
from compresskit.storage.run_folder import RunFolder
from compresskit.terminal import drawn

WIDTH_WITHOUT_TERMINAL = 160
_log = logging.getLogger(__name__)


def publish(result: Result, *, as_json: bool, quiet: bool) -> None:
    """Writes the report where the command wrote its files; prints the table, or the JSON."""
    if result.folder is not None:
        folder = RunFolder(result.folder)
        folder.write_text("report.json", to_json(result))
        folder.write_text("report.md", markdown(result))
        for name, write in (("report.html", _write_page), ("TensorBoard's files", _write_board)):
            try:
                write(result, folder)
            except Exception as error:  # whatever it is: the work is done, and told in the files above
                told = f"{type(error).__name__}: {error}".splitlines()[0]
                _log.warning("%s could not be written (%s); report.md and report.json have all of it", name, told)
    if as_json:
        sys.stdout.write(to_json(result))
    elif not quiet:
        console = _Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
        show(result, console)


def _write_page(result: Result, folder: RunFolder) -> None:
    """report.html."""
    from compresskit.page.report import report_page  # the template engine, for those that write files

    parts = {
        "Result": [*_summary(result), *_targets(result)],
        "Tables": [table for table in result.tables if table.rows],
        "Left alone": _left_alone(result),
        "Checks": _checks(result),
    }
    sheets = {name: [sheet(t.title, t.columns, t.rows) for t in tables] for name, tables in parts.items()}
    folder.write_text("report.html", report_page(folder.path, result.verb, result.title, sheets, result.notes))


def _write_board(result: Result, folder: RunFolder) -> None:
    """tensorboard/report, where the run's section asks for TensorBoard: each figure before (at 0) and after (at 1), and
    the share of parameters and MACs that each layer of model.pt has, one step a layer."""
    if not _asks(read_record(folder.path)["made_of"].get(result.verb), "tensorboard"):
        return
    from compresskit.graph.counting import count
    from compresskit.storage.checkpoint import load
    from compresskit.training.metrics_log import write_board

    curves = {
        f"report/{figure.name}": [statistics.fmean(values) for values in (figure.before, figure.after) if values]
        for figure in result.figures
    }
    checkpoint = load(folder.path / "model.pt")
    counts = count(checkpoint.network, checkpoint.input_shape)
    curves["layers/parameters, share"] = [layer.parameters / (counts.parameters or 1) for layer in counts.layers]
    curves["layers/MACs, share"] = [layer.macs / (counts.macs or 1) for layer in counts.layers]
    write_board(folder.path / "tensorboard" / "report", curves)


def _asks(section: Any, key: str) -> bool:
    """Whether the section of a recipe, or one in it, has the key set."""
    if isinstance(section, list):
        return any(_asks(one, key) for one in section)
    if not isinstance(section, dict):
        return False
    return bool(section.get(key)) or any(_asks(inner, key) for inner in section.values())


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


def _all_tables(result: Result) -> list[Table]:
    tables = [table for table in result.tables if table.rows]
    return [*_summary(result), *tables, *_targets(result), *_left_alone(result)]


def _summary(result: Result) -> list[Table]:
    if not result.figures:
        return []
    compared = any(figure.before for figure in result.figures)
    columns = ("", "before", "after", "after / before") if compared else ("", "value")
    return [Table("result", columns, [_figure_row(figure, compared) for figure in result.figures])]


def _targets(result: Result) -> list[Table]:
    rows = [(t.name, t.asked, t.got, "met" if t.met else "MISSED") for t in result.targets]
    return [Table("targets", ("target", "asked", "got", ""), rows)] if rows else []


def _left_alone(result: Result) -> list[Table]:
    return [Table("left alone", ("what", "why"), list(result.skipped.items()))] if result.skipped else []


def _checks(result: Result) -> list[Table]:
    rows = [(name, f"{value:.1e}") for name, value in result.checks.items()]
    return [Table("checks", ("what", "largest difference"), rows)] if rows else []


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


class _Lane:
    """What one job says: its name stands before each line."""

    def __init__(self, bar: Progress, name: str, notes: list[str], *, shown: bool, quiet: bool) -> None:
        """shown: whether there is a terminal that the bar is on. notes: of the report, common to all lanes."""
        self.bar, self.notes, self._shown, self._quiet = bar, notes, shown, quiet
        self._prefix = f"{name}: " if name else ""
        self._task: TaskID | None = None
        self._description, self._total, self._said = "", 0, time.monotonic()
        self._first: tuple[int, float] | None = None  # what was done when it was first told, and when that was

    def start(self, task: str, total: int) -> None:
        self.end()
        self._description, self._total, self._first = task, total, None
        if self._shown:
            self._task = self.bar.add_task(escape(self._prefix + task), total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        if self._shown and self._task is not None:
            self.bar.update(self._task, completed=done, note=escape(note))
            return
        now = time.monotonic()
        first, began = self._first = self._first or (done, now)  # of work that was resumed, a part is done already
        if not self._quiet and now - self._said > 30:  # since the last line, of this work or of one before
            left = f", {(now - began) * (self._total - done) / (done - first):.0f} s left" if done > first else ""
            self.log(f"{self._description}: {done} of {self._total}{left} {note}".rstrip())

    def log(self, text: str) -> None:
        self._said = time.monotonic()
        if self._shown:
            self.bar.console.print(self._prefix + text, markup=False, highlight=False)
        elif not self._quiet:
            sys.stderr.write(f"{self._prefix}{text}\n")

    def note(self, text: str) -> None:
        """Logs it once, and keeps it for the report; `validate` loads the data for each verb, and so do jobs."""
        if text not in self.notes:
            self.notes.append(text)
            self.log(f"warning: {text}")

    def end(self) -> None:
        """Takes its bar away."""
        if self._task is not None:
            self.bar.remove_task(self._task)
            self._task = None


class TerminalProgress(_Lane):
    """Bar with rate and time left on standard error; without a terminal, plain lines now and then."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}")
        bar = Progress(*columns, note, console=Console(stderr=True), transient=True)
        super().__init__(bar, "", [], shown=sys.stderr.isatty() and not quiet, quiet=quiet)

    def __enter__(self) -> "TerminalProgress":
        if self._shown:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shown:
            self.bar.stop()

    def lane(self, name: str) -> _Lane:
        """One more, for a job of that name; this one's bar makes room."""
        self.end()
        return _Lane(self.bar, name, self.notes, shown=self._shown, quiet=self._quiet)
