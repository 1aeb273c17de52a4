"""What is read of runs: of whole ones, of those that did not end, and of what is none."""

import json
import os
import platform
from dataclasses import asdict

import pytest

from compresskit.commands.show.overview.found import find
from compresskit.errors import RecipeError
from compresskit.storage.lock import Lock, Owner
from compresskit.storage.record import RECORD
from tests.commands.show.overview.made import figure, make


def only(folder):
    (run,) = find([folder]).runs
    return run


def change(path, **values):
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v is not None}))


def test_a_run_as_its_files_tell_of_it(tmp_path):
    make(tmp_path / "a/b", value=[0.9, 0.8], parents=("p",), checkpoint="c", device="cuda (NVIDIA H100)")
    run = only(tmp_path)
    assert (run.label, run.name, run.verb, run.status) == ("a/b", "b", "prune", "done")
    assert run.net == "resnet, depth 18, width 0.25"
    assert (run.metric, run.value, run.higher_is_better, run.data) == ("accuracy", (0.9, 0.8), True, "mnist-mini")
    assert (run.parameters, run.macs, run.nbytes, run.latency) == ((1000,), (100_000,), (4000,), (1.0,))
    assert run.timed == "batch 1, cpu, NVIDIA H100"
    assert (run.parents, run.checkpoints) == (("p",), {"c"})


def test_what_masks_set_to_zero_does_not_count(tmp_path):
    folder = make(tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    report["figures"] += [figure("parameters not masked", 77), figure("MACs by weights not masked", 7700)]
    change(folder / "report.json", **report)
    assert (only(tmp_path).parameters, only(tmp_path).macs) == ((77,), (7700,))


def test_a_number_that_was_not_finite_is_none(tmp_path):
    folder = make(tmp_path / "run")
    change(folder / "report.json", figures=[figure("test accuracy", None)])
    assert only(tmp_path).value == ()


@pytest.mark.parametrize(
    ("given", "ended", "status"),
    [
        ({}, {"at": "", "checkpoints": {}}, "done"),
        ({"targets": (True, False)}, {"at": "", "checkpoints": {}}, "target missed"),
        ({"failed": {"trial-2": "no memory"}}, {"at": "", "checkpoints": {}}, "jobs failed"),
        ({"error": "no memory"}, {"at": "", "error": "no memory"}, "failed"),
        ({}, {"at": "", "interrupted": True}, "unfinished"),
        ({}, None, "unfinished"),
    ],
)
def test_how_a_run_ended(tmp_path, given, ended, status):
    folder = make(tmp_path / "run", **given)
    change(folder / RECORD, ended=ended)
    assert only(tmp_path).status == status
    told = {"failed": ["failed: no memory"], "jobs failed": ["failed: trial-2: no memory"]}.get(status, [])
    assert find([tmp_path]).notes == [f"{folder}: {text}" for text in told]


def test_many_jobs_that_failed_are_one_line(tmp_path):
    make(tmp_path / "a", failed=dict.fromkeys(("1", "2", "3", "4"), "no memory"))
    make(tmp_path / "b", failed={"1": "no memory", "2": "the loss is nan"})
    assert [run.error for run in find([tmp_path]).runs] == ["1, 2, ... 4: no memory", "1, 2: its report says why"]


@pytest.mark.parametrize(("mine", "status"), [(True, "running"), (False, "unfinished")])
def test_a_run_that_somebody_holds_is_running(tmp_path, mine, status):
    """Whoever held it last: its number may be another process's by now, and its machine nobody knows."""
    folder = make(tmp_path / "run")
    change(folder / RECORD, ended=None)
    lock = Lock(folder / ".lock")
    lock.acquire()
    if not mine:
        lock.release()
        owner = Owner(os.getpid(), "another machine", "now", "compresskit")
        (folder / ".lock.owner").write_text(json.dumps(asdict(owner)))
    before = sorted(os.listdir(folder))
    assert only(tmp_path).status == status
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(("host", "status"), [(platform.node(), "unfinished"), ("another", "running")])
def test_where_locks_cannot_be_asked_the_owner_tells(tmp_path, monkeypatch, host, status):
    monkeypatch.setattr("compresskit.storage.lock.fcntl", None)
    folder = make(tmp_path / "run")
    change(folder / RECORD, ended=None)
    (folder / ".lock").touch()
    (folder / ".lock.owner").write_text(json.dumps(asdict(Owner(2**30, host, "now", "compresskit"))))
    assert only(tmp_path).status == status


@pytest.mark.parametrize(("metric", "higher"), [("accuracy", True), ("mae", False)])
def test_records_of_older_versions_tell_less(tmp_path, metric, higher):
    folder = make(tmp_path / "run", metric=metric)
    new = ("started", "device", "metric", "higher_is_better", "test data", "ended")
    change(folder / RECORD, **dict.fromkeys(new))
    os.utime(folder / RECORD, (0, 0))
    run = only(tmp_path)
    assert (run.status, run.metric, run.higher_is_better) == ("done", metric, higher)
    assert (run.started, run.test_data) == ("1970-01-01T00:00:00+00:00", "d" * 64)
    (folder / "report.json").unlink()
    assert only(tmp_path).status == "unfinished"


BROKEN = {
    "text": (RECORD, "{", "it holds files, but no run of compresskit"),
    "list": (RECORD, "[]", "it holds files, but no run of compresskit"),
    "foreign": (RECORD, '{"verb": "train"}', "it holds files, but no run of compresskit"),
    "cleared": (RECORD, '{"cleared": true}', "it was being removed"),
    "made of": (RECORD, '{"verb": "train", "made_of": 3}', "it holds no run that can be read"),
    "report": ("report.json", '{"figures"', "report.json cannot be read"),
    "bytes": ("report.json", b"\xff\xfe", "report.json cannot be read"),
    "no report": ("report.json", "3", "report.json is no report"),
    "figures": ("report.json", '{"figures": [{"name": "file"}]}', "it holds no run that can be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_or_foreign_is_named_and_stops_nothing(tmp_path, name):
    file, content, told = BROKEN[name]
    make(tmp_path / "good")
    bad = make(tmp_path / "bad") / file
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = find([tmp_path])
    assert "good" in [run.label for run in found.runs]
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'bad'}: {told}")


def test_a_report_without_a_record_is_foreign(tmp_path):
    make(tmp_path / "good")
    (make(tmp_path / "bad") / RECORD).unlink()
    assert len(find([tmp_path]).notes) == 1


def test_runs_come_in_the_order_of_their_start_and_once(tmp_path):
    for name, day in (("b", 1), ("a", 2), ("c", 1)):
        make(tmp_path / name, started=f"2026-01-0{day}T00:00:00+00:00")
    assert [run.label for run in find([tmp_path]).runs] == ["b", "c", "a"]
    again = find([tmp_path, tmp_path / "a"]).runs
    assert [run.label for run in again] == [str(tmp_path / name) for name in ("b", "c", "a")]
    change(tmp_path / "b" / RECORD, started=5)  # damaged: it has its place, and costs the others nothing
    assert [run.label for run in find([tmp_path]).runs] == ["c", "a", "b"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path / "good")
    make(tmp_path / "shut/run")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find([tmp_path])
    assert [run.label for run in found.runs] == ["good"]
    assert found.notes == [f"{tmp_path / 'shut'}: it cannot be read (Permission denied)"]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no such folder; name one that holds runs"):
        find([tmp_path / "nothing"])
