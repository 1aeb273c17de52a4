"""The runs below folders, as their run.json and report.json tell of them; no network is read."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskit.commands.result import NONZERO, SPARSE, shortened
from compresskit.errors import RecipeError, RunFolderError
from compresskit.storage.lock import Lock
from compresskit.storage.record import RECORD, read_record

REPORT = "report.json"
_LOWER = ("loss", "mae", "mse")  # main metrics of records that do not tell the direction
_IN_NET = ("kind", "depth", "width", "channels", "name", "target")  # what tells a model from another of its kind

Trials = tuple[float, ...]  # one value a trial


@dataclass(frozen=True)
class Run:
    """One run. Figures are empty where its report has none.

    label: its folder, below the one that was looked in where that is the only one.
    status: done, target missed, jobs failed (some of them), failed, running or unfinished.
    started: ISO 8601, UTC.   test_data: fingerprint of what the metric is taken of; data: what people call them.
    latency: milliseconds, at `timed`: batch and device.   parents: hashes of the checkpoints that it started from.
    checkpoints: hashes of those that it left.   error: why it or jobs of it failed.
    """

    folder: Path
    label: str
    name: str
    verb: str
    net: str
    status: str
    started: str
    error: str = ""
    metric: str = ""
    value: Trials = ()
    higher_is_better: bool = True
    test_data: str = ""
    data: str = ""
    parameters: Trials = ()
    macs: Trials = ()
    nbytes: Trials = ()
    latency: Trials = ()
    timed: str = ""
    parents: tuple[str, ...] = ()
    checkpoints: frozenset[str] = frozenset()

    @property
    def is_done(self) -> bool:
        return self.status in ("done", "target missed", "jobs failed")


@dataclass
class Found:
    """Runs by the time they started, and a line on each folder that is not what it seems."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(folders: Sequence[Path]) -> Found:
    """All runs below the folders, each once. Raises RecipeError for a folder that is not there."""
    found, seen = Found(), set()

    def unread(error: OSError) -> None:
        found.notes.append(f"{error.filename}: it cannot be read ({error.strerror})")

    for top in folders:
        if not top.is_dir():
            raise RecipeError(f"show runs: {top}: no such folder; name one that holds runs, such as runs")
        for place, inner, names in os.walk(top, onerror=unread):
            inner.sort()
            if (RECORD in names or REPORT in names) and (real := os.path.realpath(place)) not in seen:
                seen.add(real)
                _add(found, Path(place), top if len(folders) == 1 else None)
    found.runs.sort(key=lambda run: (run.started, str(run.folder)))
    return found


def _add(found: Found, folder: Path, below: Path | None) -> None:
    """The run in the folder, or why it is none."""
    label = str(folder.relative_to(below)) if below and folder != below else str(folder)
    try:
        record = read_record(folder)
        if record.get("cleared"):
            raise RunFolderError(f"{folder}: it was being removed")
        run = _run(folder, label, record, _report(folder, found.notes))
    except RunFolderError as error:
        found.notes.append(str(error).partition(";")[0])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.notes.append(f"{folder}: it holds no run that can be read ({type(error).__name__}: {error})")
    else:
        found.runs.append(run)
        if run.error:
            found.notes.append(f"{folder}: failed: {run.error}")


def _report(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Empty where there is none, or none that can be read, which becomes a note."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if isinstance(report, dict):
            return report
        notes.append(f"{folder}: {REPORT} is no report")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        notes.append(f"{folder}: {REPORT} cannot be read ({str(error).splitlines()[0]})")
    return {}


def _run(folder: Path, label: str, record: Mapping[str, Any], report: Mapping[str, Any]) -> Run:
    made_of, ended = record["made_of"], record.get("ended", {})
    figures = {figure["name"]: figure for figure in report.get("figures", [])}
    tests = [name.removeprefix("test ") for name in figures if name.startswith("test ")]
    metric = record.get("metric") or next(iter(tests), "")
    timed = next((name for name in figures if name.startswith("latency, ")), "")
    return Run(
        folder=folder,
        label=label,
        name=str(made_of.get("name") or folder.name),
        verb=str(record["verb"]),
        net=_net(made_of.get("model")),
        status=_status(folder, record, report),
        started=str(record.get("started") or _time_of(folder / RECORD)),
        error=str(ended.get("error", "")) or _of_jobs(_jobs_failed(report)),
        metric=str(metric),
        value=_trials(figures, f"test {metric}"),
        higher_is_better=bool(record.get("higher_is_better", metric not in _LOWER)),
        test_data=str(record.get("test data") or made_of.get("the data") or ""),
        data=_data(made_of.get("data")),
        parameters=_trials(figures, NONZERO) or _trials(figures, "parameters"),
        macs=_trials(figures, SPARSE) or _trials(figures, "MACs"),
        nbytes=_trials(figures, "file"),
        latency=_trials(figures, timed),
        timed=", ".join(part for part in (timed.removeprefix("latency, "), _gpu(record)) if part),
        parents=tuple(map(str, made_of.get("--checkpoint", ()))),
        checkpoints=frozenset(map(str, ended.get("checkpoints", {}).values())),
    )


def _status(folder: Path, record: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    ended = record.get("ended")
    if Lock(folder / ".lock").is_held():
        return "running"
    if ended is not None and ended.get("error"):
        return "failed"
    whole = "checkpoints" in ended if ended is not None else "started" not in record and bool(report)
    if not whole:
        return "unfinished"
    if _jobs_failed(report):
        return "jobs failed"
    return "done" if all(target["met"] for target in report.get("targets", [])) else "target missed"


def _jobs_failed(report: Mapping[str, Any]) -> dict[str, str]:
    """By job, what stopped it."""
    return dict(report.get("failed", {}))


def _of_jobs(failed: Mapping[str, str]) -> str:
    """Their names, and why where that is the same for all; nothing where there are none."""
    reasons = {*failed.values()}
    why = reasons.pop() if len(reasons) == 1 else "its report says why"
    return f"{shortened(list(failed))}: {why}" if failed else ""


def _trials(figures: Mapping[str, Mapping[str, Any]], name: str) -> Trials:
    """What the report has after the run; null stood for what is not finite, and says nothing."""
    after = figures[name]["after"] if name in figures else []
    return tuple(value for value in after if isinstance(value, int | float))


def _net(model: Any) -> str:
    """The kind of the model, with what tells it from others: `resnet, depth 18, width 0.25`."""
    if not isinstance(model, dict):
        return ""
    told = {name: model[name] for name in _IN_NET if model.get(name) is not None}
    kind = str(told.pop("kind", ""))
    return ", ".join([kind, *(f"{name} {_short(value)}" for name, value in told.items())])


def _data(data: Any) -> str:
    """The kind of the data, with the name of their file or folder."""
    if not isinstance(data, dict):
        return ""
    place = next((data[name] for name in ("path", "root", "target") if isinstance(data.get(name), str)), "")
    return " ".join(part for part in (str(data.get("kind", "")), place.rpartition("/")[2]) if part)


def _gpu(record: Mapping[str, Any]) -> str:
    """Which one it is, where a record tells; latencies on different ones do not compare."""
    return str(record.get("device", "")).partition("(")[2].rstrip(")")


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _time_of(path: Path) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(path.stat().st_mtime))
