"""Tables of measured results are made from the runs' own figures, and no page says anything else."""

import json
from pathlib import Path

import pytest

from scripts import make_docs_results
from scripts.make_docs_results import PAGES, add, with_tables

PAGE = """before
<!-- table
raw: one
title: networks
columns: {network: network, "accuracy, fused": fused}
document: {theirs: {2-4: 0.9, other: 0.1}}
-->
old
<!-- end of table -->
behind
"""
REPORT = {
    "verb": "fuse", "figures": [], "targets": [], "notes": [], "details": {"large": [0] * 100},
    "tables": [{
        "title": "networks", "columns": ["network", "accuracy, fused", "cost", "cost"],
        "rows": [["2-4", [0.5, 0.7], 3, 4], ["2", [1200, 1200], "", 1.5]],
    }],
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_pages_are_up_to_date(path):
    page = path.read_text()
    assert with_tables(page) == page, "run scripts/make_docs_results.py"


def test_every_kept_run_is_on_a_page():
    pages = "".join(path.read_text() for path in PAGES.glob("*.md"))
    kept = [path.stem for path in (PAGES / "raw").glob("*.json")]
    assert kept
    assert [name for name in kept if f"raw: {name}\n" not in pages] == []


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(make_docs_results, "PAGES", tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/report.json").write_text(json.dumps(REPORT))
    (tmp_path / "run/run.json").write_text(json.dumps({"made_of": {"seed": 3}}))
    return add(tmp_path / "run", "one")


def test_a_table_has_means_and_deviations_beside_the_documents_figures(kept):
    assert with_tables(PAGE) == PAGE.replace(
        "old\n",
        "\n| network | fused | theirs |\n| --- | --- | --- |\n| 2-4 | 0.6000 ± 0.1414 | 0.9 |\n| 2 | 1,200 |  |\n\n",
    )
    assert with_tables(with_tables(PAGE)) == with_tables(PAGE)
    assert "details" not in json.loads(kept.read_text())
    assert json.loads(kept.read_text())["recipe"] == {"seed": 3}


def test_of_columns_of_one_name_each_can_be_asked_for(kept):
    page = PAGE.replace('"accuracy, fused": fused', "cost: one, cost (2): other")
    assert "| 2-4 | 3 | 4 | 0.9 |" in with_tables(page)


def test_a_whole_title_is_meant_where_another_begins_so(kept):
    raw = json.loads(kept.read_text())
    longer = raw["tables"][0] | {"title": raw["tables"][0]["title"] + " and more", "rows": []}
    kept.write_text(json.dumps(raw | {"tables": [longer, *raw["tables"]]}))
    assert "| 2-4 |" in with_tables(PAGE)
    with pytest.raises(KeyError, match="2 tables begin with 'netw'"):
        with_tables(PAGE.replace("title: networks", "title: netw"))


@pytest.mark.parametrize(("old", "new"), [("title: networks", "title: nets"), ("accuracy, fused", "accuracy")])
def test_what_is_not_there_is_said(kept, old, new):
    with pytest.raises(KeyError, match="one: "):
        with_tables(PAGE.replace(old, new))
