"""Writes the tables of docs/results/ from the runs' own figures, which lie beside the pages in docs/results/raw.

    python scripts/make_docs_results.py [--check]        (--check: exits with 1 where a page is not up to date)
    python scripts/make_docs_results.py --add RUN NAME   keeps the figures of a run's folder as raw/NAME.json

A page holds blocks of

    <!-- table
    raw: NAME
    title: of the report's table, or how it begins where no other begins so
    columns: {column of the report's table: heading}
    document: {heading: {first cell of a row: the document's figure}}
    -->

in YAML, behind which the table stands, up to `<!-- end of table -->`. Cells of several trials are the mean and the
sample standard deviation.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

PAGES = Path(__file__).parents[1] / "docs" / "results"
KEPT = ("verb", "figures", "tables", "targets", "notes")  # of report.json; details are large
_BLOCK = re.compile(r"(<!-- table\n(.*?)\n-->\n).*?<!-- end of table -->", re.DOTALL)


def add(run: Path, name: str) -> Path:
    """Keeps what pages are made from. Raises OSError where `run` has no report."""
    report, made = (json.loads((run / file).read_text()) for file in ("report.json", "run.json"))
    kept = {key: report[key] for key in KEPT} | {"recipe": made["made_of"]}
    kept["recipe"].get("data", {}).pop("root", None)  # a place on one machine
    path = PAGES / "raw" / f"{name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def with_tables(page: str) -> str:
    """The page with every table as the raw files have it."""
    return _BLOCK.sub(lambda block: f"{block[1]}{table(yaml.safe_load(block[2]))}<!-- end of table -->", page)


def table(asked: Mapping[str, Any]) -> str:
    """A table in Markdown. Raises KeyError for a raw file, a table or a column that there is not, or several tables."""
    raw = json.loads((PAGES / "raw" / f"{asked['raw']}.json").read_text())
    found = [one for one in raw["tables"] if one["title"].startswith(asked["title"])]
    found = [one for one in found if one["title"] == asked["title"]] or found
    if len(found) != 1:
        raise KeyError(f"{asked['raw']}: {len(found) or 'no'} tables begin with {asked['title']!r}")
    rows, columns = found[0]["rows"], list[str]()
    for name in found[0]["columns"]:  # of several of one name, the second is `name (2)`
        again = sum(column.partition(" (")[0] == name for column in columns)
        columns.append(f"{name} ({again + 1})" if again else name)
    places = [columns.index(name) if name in columns else None for name in asked["columns"]]
    if None in places:
        raise KeyError(f"{asked['raw']}: of {list(asked['columns'])} some are no columns of {columns}")
    document = asked.get("document", {})
    lines = [[*asked["columns"].values(), *document], ["---"] * (len(places) + len(document))]
    for row in rows:
        cells = [_said(row[place]) for place in places if place is not None]
        lines.append([*cells, *(str(theirs.get(cells[0], "")) for theirs in document.values())])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _said(cell: Any) -> str:
    values = cell if isinstance(cell, list) else [cell]
    if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return str(cell)
    if all(isinstance(value, int) for value in values) and len(set(values)) == 1:
        return f"{values[0]:,}"
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--add", nargs=2, metavar=("RUN", "NAME"))
    given = parser.parse_args()
    if given.add:
        print(f"{add(Path(given.add[0]), given.add[1])}: written")
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text()
        if (renewed := with_tables(page)) != page:
            stale.append(path)
            if not given.check:
                path.write_text(renewed)
    for path in stale:
        print(f"{path}: {'is not up to date' if given.check else 'written'}")
    return 1 if stale and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
