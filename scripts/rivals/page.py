"""The page's figures and pictures, from the cells that there are: one file of JSON, a picture for each net."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rivals.cells import every_cell, read_original
from rivals.methods import METHODS
from rivals.pictures import draw
from rivals.tables import SIZES, tables


def write_page(cells: Path, recipes: Mapping[str, Path], docs: Path) -> Iterator[Path]:
    """The files that it writes, in turn; cells of sizes that the page does not have stay out."""
    nets = {name: told for name in recipes if (told := read_original(cells, name)) is not None}
    kept = [cell for cell in every_cell(cells) if cell.net in nets and cell.size in SIZES and cell.method in METHODS]
    own = {net: {(cell.method, cell.size): cell for cell in kept if cell.net == net} for net in nets}
    raw = docs / "results" / "raw" / "rivals.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(compact({"nets": nets, "tables": tables(nets, own), "cells": [asdict(cell) for cell in kept]}))
    yield raw
    for net, told in nets.items():
        path = docs / "pictures" / f"rivals-{net}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path, told, own[net])
        yield path


def compact(plain: Mapping[str, Sequence[Any] | Mapping[str, Any]]) -> str:
    """JSON with a line for each entry of the second level."""
    parts = []
    for key, value in plain.items():
        if isinstance(value, Mapping):
            lines = [f" {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items()]
            parts.append(f"{json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(key)}: [\n" + ",\n".join(f" {json.dumps(one)}" for one in value) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"
