"""Jobs in processes of their own: what one does, how it ends, and what others hear of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compresskit.errors import ConvergenceError, JobError
from compresskit.jobs.places import Place
from compresskit.jobs.processes import prepare, spread
from tests.forked.start import environment
from tests.jobs.doing import order

MODULE = "tests.jobs.doing"
ROOT = Path(__file__).parents[2]
ONE = Place(1)
PARENT = """
import sys
from pathlib import Path
from compresskit import process
from compresskit.jobs.places import Place
from compresskit.jobs.processes import spread
from tests.jobs.doing import order
from tests.jobs.test_processes import Said

if __name__ == "__main__":
    process.prepare()
    folder = Path(sys.argv[1])
    spread("tests.jobs.doing", {name: order("waits", folder) for name in "ab"}, [Place(1)] * 2, Said())
"""

KILLED = """
import sys
from pathlib import Path
from compresskit.jobs.places import Place
from compresskit.jobs.processes import prepare, spread
from tests.jobs.doing import order
from tests.jobs.test_processes import Said

prepare("tests.jobs.doing")
print(*spread("tests.jobs.doing", {"a": order("is killed", Path(sys.argv[1]))}, [Place(1)], Said()))
"""
EARLY = """
import os
import signal
import time
from multiprocessing import forkserver
from compresskit.jobs.processes import prepare

signal.signal(signal.SIGINT, signal.default_int_handler)  # the one of pytest may ignore it
prepare("tests.jobs.doing")
server = forkserver._forkserver._forkserver_pid
for _ in range(50):
    os.kill(server, signal.SIGINT)
    time.sleep(0.01)
print(*os.waitpid(server, os.WNOHANG))
"""


@pytest.fixture(autouse=True)
def server() -> None:
    """Of processes that have imported torch."""
    prepare(MODULE)


class Said:
    """A board that keeps what is said."""

    def __init__(self, name: str = "", lines: list[str] | None = None) -> None:
        self.name, self.lines = name, [] if lines is None else lines

    def lane(self, name: str) -> "Said":
        return Said(name, self.lines)

    def start(self, task: str, total: int) -> None:
        self.lines.append(f"{self.name}: {task}, {total}")

    def update(self, done: int, note: str = "") -> None:
        self.lines.append(f"{self.name}: {done} {note}")

    def log(self, text: str) -> None:
        self.lines.append(f"{self.name}: {text}")

    note = log

    def end(self) -> None:
        self.lines.append(f"{self.name}: ended")


def test_each_runs_at_its_place_and_says_so(tmp_path):
    said, places = Said(), [Place(1, 0), Place(3, 1)]
    failed = spread(MODULE, {"a": order("x", tmp_path), "b": order("y", tmp_path)}, places, said)
    assert failed == {}
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y"}
    assert [line for line in said.lines if line.startswith("a")] == [
        "a: x, 3",
        f"a: x with 1 of {places[0]}",
        "a: ended",
    ]
    assert [line for line in said.lines if line.startswith("b")] == [
        "b: y, 3",
        f"b: y with 3 of {places[1]}",
        "b: ended",
    ]


def test_what_fails_stops_no_other(tmp_path):
    does = ["diverges", "is killed", "breaks", "ends well"]
    said = Said()
    failed = spread(MODULE, {name: order(name, tmp_path) for name in does}, [ONE], said)
    assert list(failed) == does[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["ends well"]
    assert isinstance(failed["diverges"], ConvergenceError)
    assert str(failed["diverges"]) == "the loss is nan"
    assert str(failed["is killed"]).startswith("its process was killed by SIGKILL")
    assert isinstance(failed["breaks"], JobError)
    assert str(failed["breaks"]).startswith("jobs: internal error, KeyError: 'unforeseen'")
    assert "diverges: failed: the loss is nan" in said.lines
    assert not hasattr(failed["is killed"], "__notes__")
    for name, last in {"diverges": "ConvergenceError: the loss is nan", "breaks": "KeyError: 'unforeseen'"}.items():
        (whole,) = failed[name].__notes__  # which only --debug shows
        assert whole.startswith("In the process of the job:\nTraceback (most recent call last):")
        assert "doing.py" in whole
        assert whole.endswith(last)


def test_what_one_that_is_killed_leaves_behind_is_no_warning(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("a\n", "")


def test_a_place_is_taken_by_one_at_a_time_in_order(tmp_path):
    said = Said()
    spread(MODULE, {name: order(name, tmp_path) for name in "abcd"}, [ONE], said)
    starts = [line for line in said.lines if line.endswith((", 3", "ended"))]
    assert starts == [f"{name}: {what}" for name in "abcd" for what in (f"{name}, 3", "ended")]


def test_what_comes_later_is_taken_up(tmp_path):
    known = set()

    def more():
        new = {"later"} - known if (tmp_path / "more").exists() else set()
        known.update(new)
        return {name: order(name, tmp_path) for name in new}

    spread(MODULE, {"first": order("makes more", tmp_path)}, [ONE] * 2, Said(), more)
    assert (tmp_path / "later").exists()


def test_what_all_warn_of_is_said_once(tmp_path, caplog):
    spread(MODULE, {name: order("warns", tmp_path) for name in "ab"}, [ONE] * 2, Said())
    assert [record.getMessage() for record in caplog.records] == ["odd data"]


def waiting(folder: Path) -> set[int]:
    """Processes of two jobs, once both are at work."""
    deadline = time.monotonic() + 60
    while len(found := {int(path.stem) for path in folder.glob("*.pid")}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def lives(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def gone(pids: set[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, pids))


def test_an_interruption_ends_them_with_their_state(tmp_path):
    found: list[set[int]] = []

    def interrupt() -> None:
        found.append(waiting(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        spread(MODULE, {name: order("waits", tmp_path) for name in "ab"}, [ONE] * 2, Said())
    thread.join()
    assert gone(found[0], 0)
    assert {int(path.stem) for path in tmp_path.glob("*.state")} == found[0]


def test_an_interruption_while_the_server_imports_is_not_for_it():
    done = subprocess.run([sys.executable, "-c", EARLY], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0\n", "")  # it lives


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_they_do_not_outlive_what_started_them(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "parent.py", str(tmp_path)], cwd=tmp_path, env=variables)
    pids = waiting(tmp_path)
    parent.kill()
    parent.wait()
    assert gone(pids)
    assert not list(tmp_path.glob("*.state"))
