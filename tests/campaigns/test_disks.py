"""Disks that are full, read-only or gone: an error in one line, and with room again the run goes on to the same end."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.campaigns.harness import Tally, run, same, tensors
from tests.campaigns.verbs import RUNS, SOURCE

pytestmark = pytest.mark.slow
CASES = 12  # of each run


@pytest.fixture
def disk(work: Path):
    """A small file system in the folder, whose size can be changed."""
    place = work / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def sized(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_full_disk(work, disk, seed, share, name):
    draw, tally, arguments = random.Random(seed), Tally(), RUNS[name]
    assert run(work, [*arguments, "--out", "whole", "-q"]).status == 0
    used = sum(path.stat().st_size for path in (work / "whole").rglob("*") if path.is_file())
    for _ in range(int(CASES * share) + 1):
        shutil.rmtree(disk / "out", ignore_errors=True)
        limit = 4096 * draw.randrange(1, max(2, int(1.3 * used / 4096)))
        sized(disk, str(limit))
        full = run(work, [*arguments, "--out", "disk/out", "-q"])
        fault = "" if full.status in (0, 1) else f"status {full.status}"
        if full.status == 1 and not any(word in full.err for word in ("disk is full", "are free", "No space")):
            fault = "another reason"
        tally.add(name, full, f"{limit} bytes", fault)
        sized(disk, "64m")
        again = run(work, [*arguments, "--out", "disk/out", "-q", "--resume"])
        ended = again.status == 0 and (
            name == "spectra" or same(tensors(disk / "out/model.pt"), tensors(work / "whole/model.pt"))
        )
        tally.add(name, again, f"resumed after {limit} bytes", "" if ended else "does not go on to the same tensors")
    tally.check("full disks", 2 * int(CASES * share))


def removed(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)


def replaced_by_a_file(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.write_text("")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("what", [removed, replaced_by_a_file])
def test_a_folder_that_is_gone(work, name, what):
    """Removed while the run stands behind its first files, and the run is started again."""
    tally, arguments = Tally(), RUNS[name]
    for place in (3, 8):
        gone = run(work, [*arguments, "--out", "out", "-q", "--force"], at=(place, lambda: what(work / "out")))
        tally.add(
            name, gone, f"{what.__name__} at operation {place}", "" if gone.status in (0, 1) else str(gone.status)
        )
        if (work / "out").is_file():
            (work / "out").unlink()
        shutil.rmtree(work / "out", ignore_errors=True)
        again = run(work, [*arguments, "--out", "out", "-q", "--resume", "--force"])
        tally.add(name, again, "started again", "" if again.status == 0 else again.err)
    tally.check("folders that are gone", 4)


@pytest.mark.parametrize("name", ["train", "fuse", "spectra"])
def test_names_and_places_that_cannot_be(work, name):
    tally = Tally()
    (work / "file").write_text("")
    (work / "link").symlink_to("nowhere")
    for place in ("x" * 300, "file/below", "file", "link", "/proc/out", f"{SOURCE}", "/dev/null", "/"):
        outcome = run(work, [*RUNS[name], "--out", place, "-q"])
        tally.add(name, outcome, place[:40], "" if outcome.status in (0, 1, 2) else str(outcome.status))
    tally.check("places that cannot be", 8)
