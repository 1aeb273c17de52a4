"""report.html: the report of a run with its plots, its recipe and where it came from, in one file."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskit.page.pictures import Pictures
from compresskit.page.render import render
from compresskit.page.sheets import Cell, Sheet, sheet
from compresskit.storage.record import read_record

_SHOWN = 12  # digits of a hash


def report_page(folder: Path, verb: str, title: str, parts: Mapping[str, Sequence[Sheet]], notes: Sequence[str]) -> str:
    """The page of the run in `folder`, whose plots, recipe and record are read there.

    parts: the tables under their headings, the first of them neither folded nor sorted. notes: a line each.
    Raises what reading raises.
    """
    found = Pictures()
    pictures = found.read(folder)
    recipe = folder / "recipe.yaml"
    return render(
        "report.html.jinja",
        title=f"{verb} {title}",
        folder=str(folder),
        parts={name: sheets for name, sheets in parts.items() if sheets},
        notes=notes,
        pictures=pictures,
        classes=found.styles,
        recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        provenance=_provenance(read_record(folder)),
    )


def _provenance(record: Mapping[str, Any]) -> Sheet:
    """What a record of any version has."""
    made_of = record["made_of"]
    told = {
        "command": shlex.join(record.get("command", [])),
        "started": record.get("started", ""),
        "device": record.get("device", ""),
        "seed": made_of.get("seed"),
        "parents": ", ".join(parent[:_SHOWN] for parent in made_of.get("--checkpoint", [])),
        "data": str(made_of.get("the data", ""))[:_SHOWN],
        "git revision": (record.get("git") or "")[:_SHOWN],
        **record.get("versions", {}),
        "Python": record.get("python", ""),
        "platform": record.get("platform", ""),
    }
    rows = [(Cell(name), Cell(str(value))) for name, value in told.items() if value not in ("", None)]
    return sheet("provenance", ("", ""), rows)
