"""`compresskit show runs`: all runs below folders as a table, and as a page with their Pareto fronts and lineage."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compresskit.commands.result import Result, Table
from compresskit.commands.show.overview.found import Run, Trials, find
from compresskit.commands.show.overview.lineage import Lineage
from compresskit.commands.show.overview.page import check_page, write_page
from compresskit.errors import RecipeError, near_names
from compresskit.page.text import cell, sort_key

_HASH = 8  # digits
_Row = tuple[Run, dict[str, Any]]  # and what the table shows of it, by column


@dataclass(frozen=True)
class Asked:
    """What is shown of the runs.

    sort: a column; behind a - from the largest down.   verb: runs of it alone.   net: runs alone whose network or name
    has this in it.   html: the page to write.
    """

    sort: str | None = None
    verb: str | None = None
    net: str | None = None
    html: Path | None = None


def run(folders: Sequence[Path], asked: Asked) -> Result:
    """Raises RecipeError for folders without runs, and for filters that leave none."""
    if asked.html is not None:
        check_page(asked.html)
    found = find(folders)
    told = ", ".join(map(str, folders))
    if not found.runs:
        raise RecipeError("; ".join([f"show runs: {told}: no run of compresskit lies there", *found.notes]))
    lineage = Lineage(found.runs)
    chosen = _chosen(found.runs, asked)
    metrics = {run.metric for run in chosen if run.value}
    rows = _sorted([(run, _columns(run, lineage, metrics)) for run in chosen], asked.sort)
    runs, columns = [run for run, _ in rows], tuple(rows[0][1])
    result = Result("show", f"runs in {told}", notes=found.notes)
    result.tables = [Table("runs", columns, [tuple(row.values()) for _, row in rows])]
    result.details = {"runs": [_plain(run, lineage) for run in runs]}
    if asked.html is not None:
        write_page(asked.html, result.title, result.tables[0], runs, found.notes)
        result.notes = [*found.notes, f"written to {asked.html}"]
    return result


def _chosen(runs: Sequence[Run], asked: Asked) -> list[Run]:
    verbs, nets = {run.verb for run in runs}, {run.net for run in runs if run.net}
    if asked.verb is not None and asked.verb not in verbs:
        raise RecipeError(f"--verb {asked.verb}: no run is of it; {near_names(asked.verb, verbs)}")
    part = (asked.net or "").lower()
    named = [run for run in runs if part in run.net.lower() or part in run.name.lower()]
    chosen = [run for run in named if asked.verb in (None, run.verb)]
    if not chosen:
        raise RecipeError(f"--net {asked.net}: no network or name of a run has it; {near_names(part, nets)}")
    return chosen


def _sorted(rows: list[_Row], column: str | None) -> list[_Row]:
    """By numbers, then texts; what has neither comes last either way."""
    if column is None:
        return rows
    name, down = column.removeprefix("-"), column.startswith("-")
    if name not in rows[0][1]:
        raise RecipeError(f"--sort {column}: there is no such column; {near_names(name, rows[0][1])}")

    def ordered(kind: str, key: Callable[[Any], Any]) -> list[_Row]:
        return sorted(
            (row for row in rows if _kind(row[1][name]) == kind), key=lambda row: key(row[1][name]), reverse=down
        )

    return [*ordered("number", sort_key), *ordered("text", cell), *(row for row in rows if not _kind(row[1][name]))]


def _kind(value: Any) -> str:
    return "number" if sort_key(value) is not None else "text" if value != "" else ""


def _columns(run: Run, lineage: Lineage, metrics: set[str]) -> dict[str, Any]:
    """What the table shows of a run. The metric has a column of its own where there are several."""
    named = {"metric": run.metric if run.value else ""} if len(metrics) > 1 else {}
    return {
        "run": run.label,
        "verb": run.verb,
        "net": run.net,
        **named,
        "value" if named else next(iter(metrics), "value"): _figure(run.value),
        "parameters": _figure(run.parameters),
        "MACs": _figure(run.macs),
        "file": f"{statistics.fmean(run.nbytes) / 1e3:,.1f} kB" if run.nbytes else "",
        "latency": f"{statistics.fmean(run.latency):.3f} ms" if run.latency else "",
        "started": run.started[:16].replace("T", " "),
        "status": run.status,
        "from": ", ".join(_origins(run, lineage)),
    }


def _figure(values: Trials) -> Any:
    """One number where trials agree."""
    if not values:
        return ""
    return values[0] if len(set(values)) == 1 else values


def _origins(run: Run, lineage: Lineage) -> list[str]:
    made = [parent.label for parent in lineage.parents(run)]
    return [*made, *(f"{parent[:_HASH]} (elsewhere)" for parent in lineage.elsewhere(run))]


def _plain(run: Run, lineage: Lineage) -> dict[str, Any]:
    """Of a run, for programs."""
    plain = asdict(run) | {"folder": str(run.folder), "checkpoints": sorted(run.checkpoints)}
    return plain | {"from": [str(parent.folder) for parent in lineage.parents(run)]}
