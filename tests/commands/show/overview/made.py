"""Folders of runs as the verbs leave them, but for the networks: made in no time."""

import json
from pathlib import Path
from typing import Any

from compresskit.storage.record import RECORD


def figure(name: str, *after: float, form: str = "number") -> dict[str, Any]:
    return {"name": name, "before": [], "after": list(after), "format": form}


def make(
    folder: Path,
    *,
    verb: str = "prune",
    value: float | list[float] = 0.9,
    size: int = 1000,
    metric: str = "accuracy",
    higher: bool = True,
    test_data: str = "a" * 64,
    parents: tuple[str, ...] = (),
    checkpoint: str = "",
    started: str = "2026-01-02T03:04:05+00:00",
    targets: tuple[bool, ...] = (),
    error: str = "",
    device: str = "cpu",
    details: int = 0,
    failed: dict[str, str] | None = None,
    **record: Any,
) -> Path:
    """A run that has ended; `error`: that has failed. details: so many numbers beside the report's figures.

    failed: by job, what stopped it.
    """
    folder.mkdir(parents=True)
    model = {"kind": "resnet", "depth": 18, "width": 0.25}
    made_of = {"name": folder.name, "model": model, "data": {"kind": "mnist-mini"}, "--checkpoint": list(parents)}
    ended = {"error": error} if error else {"checkpoints": {"model.pt": checkpoint} if checkpoint else {}}
    told = {
        "verb": verb,
        "made_of": made_of | {"the data": "d" * 64},
        "started": started,
        "device": device,
        "metric": metric,
        "higher_is_better": higher,
        "test data": test_data,
        "ended": {"at": started} | ended,
    }
    (folder / RECORD).write_text(json.dumps(told | record))
    values = value if isinstance(value, list) else [value]
    report = {
        "verb": verb,
        "figures": [
            figure(f"test {metric}", *values),
            *([figure("test loss", 0.5)] if metric != "loss" else []),
            figure("parameters", size, form="count"),
            figure("MACs", 100 * size, form="count"),
            figure("file", 4 * size, form="bytes"),
            figure("latency, batch 1, cpu", size / 1000, form="ms"),
        ],
        "targets": [{"name": "macs", "asked": "1", "got": "1", "met": met} for met in targets],
        "details": {"rows": [0.123456789] * details},
        "failed": failed or {},
    }
    if not error:
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "report.html").write_text("<!DOCTYPE html>")
    return folder
