"""Run folders: what is refused, what is cleared, what is resumed; and that files appear whole or not at all."""

import json
import subprocess

import pytest

from compresskit.errors import ResourceError, RunFolderError
from compresskit.storage.atomic import atomic_write
from compresskit.storage.run_folder import RECORD, check_disk, open_run_folder

RECIPE = {"seed": 0, "train": {"epochs": 3}}


def opened(path, recipe=RECIPE, verb="train", **options):
    return open_run_folder(path, verb, recipe, **({"force": False, "resume": False} | options))


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
    assert [path.name for path in run.iterdir()] == [RECORD]
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
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
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


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match=r"it cannot be made \(Not a directory\); write elsewhere with --out"):
        opened(tmp_path / "run" / "below")
    with pytest.raises(RunFolderError, match="it is a file, not a folder"):
        opened(tmp_path / "run")


def test_check_disk_says_how_much_is_missing(tmp_path):
    check_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(ResourceError, match=r"MB are needed and .* MB are free"):
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
