"""report.html of runs: a page that is well formed, needs nothing else, sorts and folds."""

import json
import math

import pytest

from compresskit import report
from compresskit.commands.result import Figure, Result, Table, Target
from compresskit.report import publish
from compresskit.storage.record import begin
from tests.page.test_pictures import draw
from tests.pages import Page, in_browser

NASTY = "</script><b>conv & \"norm'"
NUMBERS = [("a", 12.5), ("b", None), ("c", -3.0), ("d", math.nan), ("e", 1e5), ("f", 2.0)]


def result(folder, layers=3):
    rows = [(f"layer{number}.{NASTY}", number, f"{number / 7:.1%}") for number in range(layers)]
    return Result(
        "prune",
        NASTY,
        folder,
        figures=[Figure("test accuracy", (0.97,), (0.95,)), Figure("file", (44000,), (29000,), "bytes")],
        tables=[Table("layers", ("layer", "kept", "gone"), rows), Table("numbers", ("", "number"), NUMBERS)],
        targets=[Target("macs", "50", "60", False)],
        checks={"model.pt read back": 0.0},
        skipped={f"head {NASTY}": "it is the network's output"},
        notes=[f"a note {NASTY}"],
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    monkeypatch.setattr("sys.argv", ["/lib/compresskit/__main__.py", "prune", "my net.yaml"])  # python -m compresskit
    begin(path, "prune", {"seed": 7, "--checkpoint": ["ab" * 32], "the data": "cd" * 32}, {"device": "cpu"})
    (path / "recipe.yaml").write_text(f"name: {NASTY}\n")
    for name in ("ratios.png", "step-1/ratios.png"):
        draw(path / name, NASTY)
    return path


def written(result):
    publish(result, as_json=False, quiet=True)
    return result.folder / "report.html"


def test_the_page_is_whole_and_needs_nothing_else(folder):
    text = written(result(folder)).read_text()
    page = Page(text)
    assert page.outside == []
    assert page.dangling == set()
    assert page.texts["h1"] == [f"prune {NASTY}"]
    assert page.texts["li"] == [f"a note {NASTY}"]
    assert page.texts["pre"] == [f"name: {NASTY}\n"]
    assert page.texts["h2"] == ["Result", "Tables", "Left alone", "Checks", "Notes", "Plots", "Recipe", "Provenance"]
    cells = page.texts["td"]
    told = ["0.9700", "29.0 kB", "MISSED", f"layer2.{NASTY}", f"head {NASTY}", "0.0e+00", "7", "abababababab", "cpu"]
    told.append("compresskit prune 'my net.yaml'")  # as a shell takes it
    assert set(told) <= set(cells)
    assert len(page.texts["svg"]) == 2
    assert len(page.texts["script"]) == 1


def test_tables_of_many_rows_are_folded(folder):
    text = written(result(folder, layers=200)).read_text()
    assert text.count("<details>") == 3  # the layers, the plot of a step, and the recipe
    assert text.count("<details open>") == 3


def test_a_page_that_cannot_be_written_loses_nothing_else(folder, caplog):
    (folder / "report.html").mkdir()
    (folder / "report.html/mine").touch()
    written(result(folder))
    assert {"report.json", "report.md"} <= {file.name for file in folder.iterdir()}
    assert "report.html could not be written (RunFolderError:" in caplog.text
    (folder / "run.json").write_text("{")
    written(result(folder))
    assert "TensorBoard's files could not be written (RunFolderError:" in caplog.text


def test_a_picture_that_is_only_linked_is_there_by_its_name(folder):
    (folder / "a b.svg").write_text("<svg/>")
    page = Page(written(result(folder)).read_text())
    assert "a%20b.svg" in page.links


def test_no_page_is_made_where_nothing_is_written(folder, monkeypatch, capsys):
    for write in ("_write_page", "_write_board"):
        monkeypatch.setattr(report, write, lambda *_: pytest.fail("something was written"))
    publish(result(None), as_json=False, quiet=False)
    assert "layers" in capsys.readouterr().out


def test_in_a_browser_tables_sort_and_fold(folder):
    told = in_browser(
        written(result(folder, layers=40)),
        """
        const [layers, numbers] = document.querySelectorAll("table.sorts");
        const column = (table, at) => [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
        const click = (table, at) => table.tHead.rows[0].cells[at].querySelector("button").click();
        const show = (name, table, at) => report(name + " " + JSON.stringify(column(table, at)));
        click(numbers, 1); show("up", numbers, 0);
        click(numbers, 1); show("down", numbers, 0);
        click(numbers, 1); show("as it was", numbers, 0);
        click(layers, 0); click(layers, 0);
        report("natural " + column(layers, 1)[0]);
        const fold = layers.closest("details");
        report("open " + fold.open + " " + layers.checkVisibility());
        fold.querySelector("summary").click();
        report("open " + fold.open + " " + layers.checkVisibility());
        """,
    ).splitlines()
    up, down, as_it_was = (json.loads(line.partition("[")[1] + line.partition("[")[2]) for line in told[:3])
    assert up == ["c", "f", "a", "e", "b", "d"]
    assert down == ["e", "a", "f", "c", "b", "d"]
    assert as_it_was == ["a", "b", "c", "d", "e", "f"]
    assert told[3:] == ["natural 39", "open false false", "open true true"]


def test_a_browser_shows_its_errors(folder):
    assert "error: " in in_browser(written(result(folder)), "nothing.there()")


def test_a_report_of_a_large_net_is_small(folder):
    assert written(result(folder, layers=200)).stat().st_size < 100_000
