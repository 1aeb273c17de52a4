"""The page of `show runs`: the table, what each metric costs with its Pareto front, and which run came of which."""

import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from compresskit.commands.result import Table
from compresskit.commands.show.overview.found import Run, Trials
from compresskit.commands.show.overview.lineage import Lineage
from compresskit.errors import RunFolderError
from compresskit.numerics.pareto import pareto_front
from compresskit.page.render import render
from compresskit.page.scatter import Point, Scatter, scatter
from compresskit.page.sheets import Cell, sheet
from compresskit.page.text import cell
from compresskit.storage.atomic import atomic_write

REPORT = "report.html"
OURS = 'name="generator" content="compresskit show runs"'  # as the template has it
_HEAD = 1000  # characters of a page, in which that is
_COSTS: dict[str, Callable[[Run], Trials]] = {
    "parameters": lambda run: run.parameters,
    "MACs": lambda run: run.macs,
    "bytes": lambda run: run.nbytes,
}


def write_page(path: Path, title: str, table: Table, runs: Sequence[Run], notes: Sequence[str]) -> None:
    """table: of the runs, in their order, the label of each first. Links go from the page's folder to the reports."""
    links = {run.folder: _link(run, path.parent) for run in runs}
    rows = [[Cell(run.label, href=links[run.folder]), *row[1:]] for run, row in zip(runs, table.rows, strict=True)]
    page = render(
        "runs.html.jinja",
        title=title,
        table_of_runs=sheet("runs", table.columns, rows),
        panels=panels(runs, links),
        trees=Lineage(runs).trees(),
        links=links,
        told=_told,
        notes=notes,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def check_page(path: Path) -> None:
    """Raises RunFolderError for a file that is no page of ours, which alone may be replaced."""
    if path.exists() and not _is_ours(path):
        raise RunFolderError(f"--html {path}: it exists, and is no page of show runs; name another file")


def _is_ours(path: Path) -> bool:
    """Nothing is read of what is no file: a pipe would wait for somebody to write."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return OURS in file.read(_HEAD)


def panels(runs: Sequence[Run], links: dict[Path, str]) -> dict[str, list[Scatter]]:
    """By metric and data set, the metric against what it costs: runs of others are no rivals. Latencies compare at one
    batch size on one device."""
    groups: dict[tuple[str, str, bool], list[Run]] = {}
    for run in runs:
        if run.is_done and run.value:
            groups.setdefault((run.metric, run.test_data, run.higher_is_better), []).append(run)
    found: dict[str, list[Scatter]] = {}
    for (metric, test_data, higher), rivals in groups.items():
        costs = {name: (rivals, cost) for name, cost in _COSTS.items()}
        for timed in dict.fromkeys(run.timed for run in rivals if run.latency):
            costs[f"ms, {timed}"] = [run for run in rivals if run.timed == timed], lambda run: run.latency
        label = f"test {metric}, {'higher' if higher else 'lower'} is better"
        heading = f"test {metric}, {rivals[0].data or 'data that have no name'}"
        if heading in found:  # other data of the same name
            heading += f" ({test_data[:8]})"
        drawings = [_scatter(own, cost, links, name, label) for name, (own, cost) in costs.items()]
        found[heading] = [drawing for drawing in drawings if drawing is not None]
    return found


def _scatter(
    runs: Sequence[Run], cost: Callable[[Run], Trials], links: dict[Path, str], x_label: str, y_label: str
) -> Scatter | None:
    """None where no run has both. Of several trials means are drawn."""
    points = []
    for run in runs:
        pair = [statistics.fmean(values) if values else math.nan for values in (cost(run), run.value)]
        if all(map(math.isfinite, pair)):
            title = f"{run.label}: {run.metric} {cell(pair[1])}, {cell(_whole(pair[0]))} {x_label}"
            points.append(Point(pair[0], pair[1], title, links[run.folder]))
    if not points:
        return None
    sign = 1 if runs[0].higher_is_better else -1
    front = pareto_front([point.x for point in points], [sign * point.y for point in points])
    return scatter(points, front, x_label, y_label)


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _told(run: Run) -> str:
    """Of a run in a tree."""
    figures = [f"{run.metric} {cell(statistics.fmean(run.value))}"] if run.value else []
    figures += [f"{cell(_whole(statistics.fmean(run.macs)))} MACs"] if run.macs else []
    return ", ".join([run.verb, *figures, *([] if run.is_done else [run.status])])


def _link(run: Run, start: Path) -> str:
    """To the report, from `start`; empty where there is none."""
    report = run.folder / REPORT
    return quote(Path(os.path.relpath(report, start)).as_posix()) if report.exists() else ""
