"""Tables on terminals of any width: no line is too long, and no number is broken."""

import io

import pytest
from rich.console import Console
from rich.table import Table as RichTable

from compresskit.commands.result import Table, by
from compresskit.page.text import cell
from compresskit.terminal import LONGEST, drawn

LAYERS = Table(
    "layers",
    ("layer", "kind", "weight", "output", "parameters", "MACs", "share of the original's"),
    [
        (f"backbone.stage{n}.block.0.conv", "Conv2d", by((512, 512, 3, 3)), by((512, 4, 4)), 2359296, 37748736, 0.25)
        for n in range(3)
    ],
)
SPECTRA = Table(
    "spectra",
    ("layer", *(f"figure {n}" for n in range(12))),
    [("conv1", *((0.12345 * n, 0.2) for n in range(11)), "well-trained"), ("fc", *(n * 10**6 for n in range(11)), "")],
    ["red", ""],
)
REASONS = Table(
    "left alone",
    ("what", "why"),
    [("features.0", "its weights are used more than once, " * 5), ("head", "it is the network's output")],
)
SMALL = Table("targets", ("target", "asked", "got", ""), [("macs", "50%", "49.7%", "met")])
TABLES = [LAYERS, SPECTRA, REASONS, SMALL]
NAMES = [table.title for table in TABLES]


def lines(table: Table, width: int) -> list[str]:
    out = io.StringIO()
    # crop=False: else the console cuts what is too long, and nobody would see it
    Console(file=out, width=width).print(drawn(table, cell, width), crop=False)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_no_line_is_longer_than_the_terminal_and_no_number_is_broken(table, width):
    found = lines(table, width)
    assert max(map(len, found)) <= width
    for row in table.rows:
        for value in row:
            text = cell(value)
            whole = text if not isinstance(value, str) else max(text.split() or [""], key=len)
            if len(whole) <= LONGEST:
                assert any(whole in line for line in found), whole


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_nothing_is_lost(table, width):
    found = "".join("".join(lines(table, width)).split())
    for row in table.rows:
        for value in row:
            if len(cell(value)) <= LONGEST:
                assert "".join(cell(value).split()) in found


def test_a_table_that_fits_is_drawn_as_rich_draws_it():
    plain = RichTable(title="targets", title_justify="left", title_style="bold")
    for name in SMALL.columns:
        plain.add_column(name)
    plain.add_row(*SMALL.rows[0])
    out = io.StringIO()
    Console(file=out, width=80).print(plain)
    assert lines(SMALL, 80) == out.getvalue().splitlines()


def test_texts_wrap_between_words():
    words = set(REASONS.rows[0][1].split())
    found = {word for line in lines(REASONS, 60) for word in line.replace("│", " ").split()}
    assert words <= found


def test_what_fits_in_no_way_becomes_a_block_for_each_row():
    found = lines(SPECTRA, 80)
    assert found[0] == "spectra"
    assert found[1] == "conv1"
    assert found[2].startswith("  figure 0: ")
    assert any("figure 11: well-trained" in line for line in found)
    assert "│" not in "".join(found)
    assert not any("figure 11" in line for line in found[found.index("fc") :])  # an empty cell says nothing
