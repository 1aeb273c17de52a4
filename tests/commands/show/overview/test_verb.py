"""`show runs` as it is called: tables, filters, pages, and how long it takes."""

import json
import os
import subprocess
import sys

import pytest

from compresskit.commands.show.overview.found import find
from compresskit.commands.show.overview.page import panels
from compresskit.page.render import render
from tests.commands.show.overview.made import make
from tests.commands.test_startup import RUN, environment
from tests.pages import Page, in_browser


@pytest.fixture
def runs(tmp_path):
    """Four runs that make a front of three, and one of other data."""
    make(tmp_path / "runs/train", verb="train", value=0.95, size=1000, checkpoint="t", started="2026-01-01T00:00:00")
    make(tmp_path / "runs/half", value=0.94, size=500, parents=("t",), checkpoint="h")
    make(tmp_path / "runs/worse", value=0.93, size=600, parents=("t",))
    make(tmp_path / "runs/small <b>&", verb="finetune", value=[0.9, 0.8], size=100, parents=("h",), targets=(False,))
    make(tmp_path / "runs/other", value=0.99, size=10, test_data="b" * 64, parents=("elsewhere" * 8,))
    return tmp_path / "runs"


def table(call, *options):
    done = call("show", "runs", *options, "--json")
    assert done.status == 0, done.err
    (found,) = json.loads(done.out)["tables"]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def column(call, name, *options):
    return [row[name] for row in table(call, *options)]


def test_the_table(call, runs):
    first, *_, last = table(call)
    assert first == {
        "run": "train",
        "verb": "train",
        "net": "resnet, depth 18, width 0.25",
        "accuracy": 0.95,
        "parameters": 1000,
        "MACs": 100_000,
        "file": "4.0 kB",
        "latency": "1.000 ms",
        "started": "2026-01-01 00:00",
        "status": "done",
        "from": "",
    }
    assert (last["from"], last["status"]) == ("train", "done")
    by_name = {row["run"]: row for row in table(call)}
    assert by_name["small <b>&"]["accuracy"] == [0.9, 0.8]
    assert by_name["small <b>&"]["status"] == "target missed"
    assert by_name["other"]["from"] == "elsewher (elsewhere)"


def test_runs_sort_by_a_column_and_what_has_none_comes_last(call, runs):
    make(runs / "spectra", verb="spectra", error="x")
    small = "small <b>&"
    assert column(call, "run", "--sort", "accuracy") == [small, "worse", "half", "train", "other", "spectra"]
    assert column(call, "run", "--sort", "-MACs") == ["train", "worse", "half", small, "other", "spectra"]
    assert column(call, "verb", "--sort=-verb") == ["train", "spectra", "prune", "prune", "prune", "finetune"]
    done = call("show", "runs", "--sort", "accurracy")
    assert (done.status, "did you mean 'accuracy'?" in done.err) == (2, True)


def test_filters(call, runs):
    assert column(call, "run", "--verb", "train") == ["train"]
    assert column(call, "run", "--net", "RESNET", "--verb", "finetune") == ["small <b>&"]
    assert column(call, "run", "--net", "half") == ["half"]
    for options, told in (
        (["--verb", "fuse"], "--verb fuse: no run is of it"),
        (["--net", "vgg"], "--net vgg: no network"),
    ):
        done = call("show", "runs", *options)
        assert (done.status, told in done.err) == (2, True)


def test_different_metrics_have_a_column_that_names_them(call, runs):
    make(runs / "boxes", metric="map", value=0.5)
    rows = {row["run"]: row for row in table(call)}
    assert (rows["boxes"]["metric"], rows["boxes"]["value"]) == ("map", 0.5)
    assert (rows["train"]["metric"], rows["train"]["value"]) == ("accuracy", 0.95)


@pytest.mark.parametrize("arguments", [("models", "--sort", "kind"), ("layers", "--html", "x.html")])
def test_other_topics_refuse_what_is_of_runs(call, arguments):
    done = call("show", *arguments)
    assert (done.status, "is for show runs alone" in done.err) == (2, True)


@pytest.mark.parametrize("topic", ["runs", "models"])
def test_a_checkpoint_is_refused_where_it_would_not_be_read(call, topic):
    done = call("show", topic, "-c", "model.pt")
    assert (done.status, f"show {topic}: --checkpoint is for show layers alone" in done.err) == (2, True)


def test_other_topics_take_one_name(call):
    assert "one name at most" in call("show", "recipes", "prune", "train").err


def test_a_folder_without_runs_is_refused(call, tmp_path):
    (tmp_path / "empty").mkdir()
    done = call("show", "runs", "empty")
    assert (done.status, "no run of compresskit lies there" in done.err) == (2, True)


def test_runs_of_other_data_metrics_and_devices_are_no_rivals(runs):
    make(runs / "gpu", value=0.92, size=700, device="cuda (H100)")
    make(runs / "loss", metric="loss", higher=False, value=0.1, size=10)
    make(runs / "more loss", metric="loss", higher=False, value=0.2, size=20)
    (make(runs / "failed", error="x") / "report.json").write_text((runs / "train/report.json").read_text())
    found = find([runs]).runs
    drawn = panels(found, dict.fromkeys((run.folder for run in found), ""))
    headings = ["test accuracy, mnist-mini", "test accuracy, mnist-mini (bbbbbbbb)", "test loss, mnist-mini"]
    assert sorted(drawn) == headings
    accuracy, other, loss = (drawn[heading] for heading in headings)
    assert [plot.x_label for plot in accuracy] == [
        "parameters", "MACs", "bytes", "ms, batch 1, cpu", "ms, batch 1, cpu, H100"
    ]  # fmt: skip
    best = {mark.point.title.partition(":")[0] for mark in accuracy[0].marks if mark.on_front}
    assert best == {"train", "half", "small <b>&"}
    assert [len(plot.marks) for plot in accuracy] == [5, 5, 5, 4, 1]
    assert [len(plot.marks) for plot in other] == [1] * 4
    assert [mark.point.title for mark in loss[0].marks if mark.on_front] == ["loss: loss 0.1000, 10 parameters"]


def test_the_page(call, runs, tmp_path):
    (runs / "half/report.html").unlink()
    page = tmp_path / "pages/all.html"
    done = call("show", "runs", "--html", page)
    assert done.status == 0, done.err
    found = Page(page.read_text())
    assert found.outside == []
    assert found.dangling == set()
    linked = {link for link in found.links if link.endswith(".html")}
    assert linked == {f"../runs/{name}/report.html" for name in ("train", "worse", "other", "small%20%3Cb%3E%26")}
    assert len(found.texts["circle"]) == 20
    assert "small <b>&: accuracy 0.8500, 100 parameters" in found.texts["title"]
    assert found.texts["span"] == [
        "train, accuracy 0.9500, 100,000 MACs",
        "prune, accuracy 0.9400, 50,000 MACs",
        "finetune, accuracy 0.8500, 10,000 MACs",
        "prune, accuracy 0.9300, 60,000 MACs",
    ]
    assert "written to" in done.out


def test_a_long_chain_of_runs_is_no_deep_page(call, tmp_path):
    for number in range(400):
        make(tmp_path / f"runs/{number:03}", parents=(f"c{number - 1}",) if number else (), checkpoint=f"c{number}")
    done = call("show", "runs", "--html", "all.html")
    assert done.status == 0, done.err
    assert "--generation:399" in (tmp_path / "all.html").read_text()


def test_a_page_replaces_pages_alone(call, runs, tmp_path):
    for _ in range(2):
        assert call("show", "runs", "--html", "all.html").status == 0
    (tmp_path / "thesis.html").write_text("<!DOCTYPE html> years of work")
    report = render("base.html.jinja", title="report of a run")
    (tmp_path / "report.html").write_text(report)
    os.mkfifo(tmp_path / "pipe")
    for name in ("thesis.html", "report.html", "pipe", "runs"):
        done = call("show", "runs", "--html", name)
        assert (done.status, "it exists, and is no page of show runs" in done.err) == (1, True)
    assert "years of work" in (tmp_path / "thesis.html").read_text()
    assert (tmp_path / "report.html").read_text() == report


def test_in_a_browser_the_page_sorts(call, runs, tmp_path):
    assert call("show", "runs", "--html", "all.html", "--quiet").status == 0
    script = """
    const heading = [...document.querySelectorAll("th")].find((one) => one.textContent.trim() === "parameters");
    heading.querySelector("button").click();
    report([...document.querySelectorAll("tbody tr")].map((row) => row.cells[0].textContent).join("|"));
    report(document.querySelectorAll("svg.scatter circle title").length);
    report(document.documentElement.scrollWidth <= innerWidth);
    """
    assert in_browser(tmp_path / "all.html", script).splitlines() == [
        "other|small &lt;b&gt;&amp;|half|worse|train", "20", "true"
    ]  # fmt: skip


def test_two_hundred_runs_are_read_without_torch(tmp_path):
    for number in range(200):
        make(tmp_path / f"runs/{number}", value=number / 200, size=1000 + number, checkpoint=str(number), details=500)
    command = [sys.executable, "-c", RUN, "show", "runs", "--html", "all.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.html").stat().st_size < 400_000
    loaded = set(json.loads((tmp_path / "modules.json").read_text()))
    assert not loaded & {"torch", "numpy", "matplotlib", "scipy", "h5py"}
