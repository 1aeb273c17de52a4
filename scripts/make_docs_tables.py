"""Writes the tables of recipe keys into docs/: what stands between `<!-- keys: SECTION -->` and `<!-- end of keys -->`.

python scripts/make_docs_tables.py [--check]   (--check: exits with 1 where a page is not up to date)
"""

import re
import sys
from pathlib import Path

from compresskit.commands.recipe import Recipe
from compresskit.recipes.describe import Row, describe

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"<!-- keys: (\w+) -->\n.*?<!-- end of keys -->", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every table of keys as the program has them now."""
    return _BLOCK.sub(lambda block: f"<!-- keys: {block[1]} -->\n{table(block[1])}<!-- end of keys -->", page)


def table(section: str) -> str:
    """The keys of a section as `compresskit show recipes SECTION` lists them."""
    lines = ["", "| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *map(_line, describe(Recipe, section)), "", ""])


def _line(row: Row) -> str:
    cells = [f"`{row.key}`", row.allowed, f"`{row.default}`" if row.default else "", row.comment]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    stale = []
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text()
        if (renewed := with_tables(page)) != page:
            stale.append(path)
            if "--check" not in sys.argv:
                path.write_text(renewed)
    for path in stale:
        print(f"{path}: {'is not up to date' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
