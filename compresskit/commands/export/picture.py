"""The picture beside a quantised file: what eight bits cost, and what they save."""

from pathlib import Path

from compresskit.commands.result import Table
from compresskit.page.text import cell


def picture_of(out: Path) -> Path:
    """Its file, which is that of no other format of the same network: net.onnx.png."""
    return out.with_name(f"{out.name}.png")


def draw(table: Table, out: Path) -> None:
    """table: a row for each network, its name and then its figures."""
    from compresskit.plots.sizes import side_by_side  # a quarter of a second, for those that draw

    figures = dict(zip(table.columns[1:], zip(*(row[1:] for row in table.rows), strict=True), strict=True))
    names = [row[0] for row in table.rows]
    panels = {
        name: {network: (value, cell(value)) for network, value in zip(names, values, strict=True)}
        for name, values in figures.items()
    }
    side_by_side(picture_of(out), panels)
