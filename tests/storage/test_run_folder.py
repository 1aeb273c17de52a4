"""Run folders: what is refused, what is cleared, what is resumed; and that files appear whole or not at all."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading

import pytest

from compresskit.errors import ResourceError, RunFolderError
from compresskit.storage import run_folder
from compresskit.storage.atomic import atomic_write
from compresskit.storage.lock import Lock, Owner, is_lock
from compresskit.storage.run_folder import RECORD, check_disk, check_shared, open_run_folder

RECIPE = {"seed": 0, "train": {"epochs": 3}}


def opening(path, recipe=RECIPE, verb="train", **options):
    return open_run_folder(path, verb, recipe, **({"force": False, "resume": False} | options))


def opened(path, recipe=RECIPE, verb="train", **options):
    """The folder of a run that has ended."""
    with opening(path, recipe, verb, **options) as folder:
        return folder


def content(path):
    return sorted(entry.name for entry in path.iterdir() if not is_lock(entry))


def test_a_new_folder_records_what_is_needed_to_repeat_the_run(tmp_path):
    opened(tmp_path / "run")
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["verb"] == "train"
    assert record["made_of"]["train"] == RECIPE["train"]
    assert {"command", "versions", "python", "platform", "git"} <= record.keys()


def test_nothing_is_overwritten_unasked(tmp_path):
    opened(tmp_path)
    with pytest.raises(RunFolderError, match=r"it is not empty; use --force to start over, --resume to go on"):
        opened(tmp_path)


def test_force_clears_an_earlier_run_and_only_that(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    opened(run).write_text("report.md", "old")
    (run / "trial-1").mkdir()
    opened(run, force=True)
    assert content(run) == [RECORD]
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="it holds files, but no run of compresskit"):
        opened(other, force=True)
    assert (other / "thesis.tex").exists()


def test_resume_wants_the_same_verb_and_recipe(tmp_path):
    opened(tmp_path).write_text("metrics.csv", "kept")
    opened(tmp_path, resume=True)
    assert (tmp_path / "metrics.csv").read_text() == "kept"
    with pytest.raises(RunFolderError, match=r"changed: seed, train.epochs\)"):
        opened(tmp_path, {"seed": 1, "train": {"epochs": 4}}, resume=True)
    with pytest.raises(RunFolderError, match="holds a run of 'train', not of 'fuse'"):
        opened(tmp_path, verb="fuse", resume=True)


def test_resume_wants_the_same_inputs_and_data(tmp_path):
    source, run = tmp_path / "model.pt", tmp_path / "run"
    source.write_text("weights")
    opened(run, inputs=[source], data="a")
    opened(run, inputs=[source], data="a", resume=True)
    source.write_text("other weights")
    with pytest.raises(RunFolderError, match=r"made of something else \(changed: --checkpoint, the data\)"):
        opened(run, inputs=[source], data="b", resume=True)


def test_resume_with_force_goes_on_or_starts_over(tmp_path):
    opened(tmp_path).write_text("metrics.csv", "kept")
    opened(tmp_path, resume=True, force=True)
    assert (tmp_path / "metrics.csv").read_text() == "kept"
    opened(tmp_path, {"seed": 1}, resume=True, force=True)
    assert content(tmp_path) == [RECORD]
    assert json.loads((tmp_path / RECORD).read_text())["made_of"]["seed"] == 1


def test_resume_of_nothing_starts(tmp_path):
    opened(tmp_path / "new", resume=True)
    assert (tmp_path / "new" / RECORD).exists()


def test_input_and_output_never_share_a_folder(tmp_path):
    run = tmp_path / "run"
    opened(run)
    (run / "model.pt").write_text("weights")
    with pytest.raises(RunFolderError, match="it holds the input"):
        opened(run, force=True, inputs=[run / "model.pt"])
    assert (run / "model.pt").read_text() == "weights"


def test_one_run_at_a_time_writes_into_a_folder(tmp_path):
    with opening(tmp_path) as folder:
        folder.write_text("metrics.csv", "mine")
        for options in ({"force": True}, {"resume": True}, {}):
            with (
                pytest.raises(RunFolderError, match=rf"process {os.getpid()} on .* is writing there; wait for it"),
                opening(tmp_path, **options),
            ):
                pass
        assert (tmp_path / "metrics.csv").read_text() == "mine"
    opened(tmp_path, resume=True)


def test_a_lock_goes_with_its_process_and_its_last_workers(tmp_path):
    holds = """import os, sys, time
from pathlib import Path
from compresskit.storage.lock import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
worker = os.fork()
if worker:
    print(end="x", flush=True)
time.sleep(60 if worker else 2)
"""
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", holds, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.read(1) == b"x"
    lock = Lock(path)
    assert not lock.acquire()
    assert lock.owner().pid == process.pid
    process.kill()
    process.wait()
    process.stdout.close()
    assert lock.acquire()  # the child that was forked off holds it for two seconds more
    assert lock.owner().pid == os.getpid()
    lock.release()
    assert lock.owner() is None


def test_of_another_machine_nothing_is_known():
    assert Owner(2**22 + 1, platform.node(), "", "").has_ended
    assert not Owner(os.getpid(), platform.node(), "", "").has_ended
    assert not Owner(2**22 + 1, "another", "", "").has_ended


@pytest.mark.parametrize("options", [{"resume": True}, {"resume": True, "force": True}, {"force": True}, {}])
def test_a_kill_while_the_record_is_first_written_leaves_no_run(tmp_path, options):
    (tmp_path / f".{RECORD}.123.tmp").write_text('{"verb"')
    Lock(tmp_path / ".lock").acquire()
    (tmp_path / ".lock").unlink()  # as if its process were gone
    opened(tmp_path, **options)
    assert content(tmp_path) == [RECORD]


@pytest.mark.parametrize("options", [{"resume": True}, {"resume": True, "force": True}, {"force": True}, {}])
def test_a_kill_while_a_run_is_cleared_is_made_up_for(tmp_path, monkeypatch, options):
    folder = opened(tmp_path)
    folder.write_text("metrics.csv", "old")
    (tmp_path / "trial-1").mkdir()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, {"seed": 1}, force=True)
    monkeypatch.undo()
    opened(tmp_path, **options)
    assert content(tmp_path) == [RECORD]
    assert json.loads((tmp_path / RECORD).read_text())["made_of"]["seed"] == RECIPE["seed"]


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    opened(tmp_path)
    (tmp_path / "trial-1").mkdir()
    (tmp_path / "trial-1" / ".state.pt.77.tmp").write_text("half")
    opened(tmp_path, resume=True)
    assert list((tmp_path / "trial-1").iterdir()) == []


def test_a_folder_of_somebody_elses_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(RunFolderError, match="it holds files, but no run"):
            opened(tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_is_removed_in_mid_run_is_named_and_not_made_again(tmp_path):
    path = tmp_path / "run"
    with opening(path) as folder:
        shutil.rmtree(path)
        with pytest.raises(RunFolderError, match=r"run: somebody has removed it while this run was writing there"):
            folder.write_text("report.md", "x")
    assert not path.exists()
    opened(path, resume=True)


def test_a_dangling_link_is_no_folder(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(RunFolderError, match="it is a file, not a folder"):
        opened(tmp_path / "run")


def test_an_error_of_the_run_itself_is_not_the_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), opening(tmp_path):
        (tmp_path / "gone").read_text()


def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(RunFolderError, match=r"it cannot be written \(File name too long\)"):
        opened(tmp_path / ("x" * 300))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match=r"it cannot be written \(Not a directory\); write elsewhere with --out"):
        opened(tmp_path / "run" / "below")
    with pytest.raises(RunFolderError, match="it is a file, not a folder"):
        opened(tmp_path / "run")


def test_check_disk_says_how_much_is_missing(tmp_path):
    check_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(ResourceError, match=r"GB are needed and .* are free"):
        check_disk(tmp_path, 10**18)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing(small_disk):
    path = small_disk / "file"

    def fill():
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(10**6))

    with pytest.raises(ResourceError, match="the disk is full; free some space or write elsewhere with --out"):
        fill()
    assert list(small_disk.iterdir()) == []


class Two:
    """The second of two processes; what the first one says is given."""

    rank = 1

    def __init__(self, record):
        self.in_main = lambda work: record
        self.gather = list


def test_a_process_that_sees_another_folder_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    (tmp_path / RECORD).write_text("mine")
    check_shared(tmp_path, Two("mine"))
    for there in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunFolderError, match=r"process 1 on .* cannot see it; processes on several machines"):
            check_shared(there, Two("of the first"))


def test_a_folder_may_take_a_while_to_be_seen(tmp_path):
    written = threading.Timer(0.3, lambda: (tmp_path / RECORD).write_text("mine"))
    written.start()
    check_shared(tmp_path, Two("mine"))
    written.join()


def ended(path):
    return json.loads((path / RECORD).read_text()).get("ended")


def test_a_run_says_when_it_began_and_ended_and_with_which_checkpoints(tmp_path):
    with opening(tmp_path / "run", about={"device": "cpu"}) as folder:
        record = json.loads((folder.path / RECORD).read_text())
        for name in ("model.pt", "trial-1/best.pt", "state.pt"):
            (folder.path / name).parent.mkdir(exist_ok=True)
            folder.write_text(name, name)
    assert record["device"] == "cpu"
    assert "ended" not in record
    found = ended(tmp_path / "run")
    assert record["started"] <= found["at"]
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("model.pt", "trial-1/best.pt")}
    assert found["checkpoints"] == hashes


@pytest.mark.parametrize(("error", "told"), [(ValueError("no such layer"), "no such layer"), (KeyError(), "KeyError")])
def test_a_run_that_fails_says_why_until_it_goes_on(tmp_path, error, told):
    def fails():
        with opening(tmp_path / "run"):
            raise error

    with pytest.raises(type(error)):
        fails()
    assert ended(tmp_path / "run")["error"] == told
    with opening(tmp_path / "run", resume=True):
        assert ended(tmp_path / "run") is None
    assert "error" not in ended(tmp_path / "run")


def test_a_run_that_is_interrupted_has_not_failed(tmp_path):
    def stops():
        with opening(tmp_path / "run"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stops()
    assert ended(tmp_path / "run").keys() == {"at", "interrupted"}


def test_an_end_that_cannot_be_written_hides_no_error(tmp_path):
    def fails():
        with opening(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            raise ValueError("the first one")

    with pytest.raises(ValueError, match="the first one"):
        fails()
