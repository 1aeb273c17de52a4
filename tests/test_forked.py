"""Programs that are forked off are processes like others: streams, signals and status, and nothing is left of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compresskit import __version__
from tests.commands.conftest import RECIPE
from tests.forked.start import commands, environment, python

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is forked where Linux's are missing")
LONG = ("train", "net.yaml", "train.epochs=500")
STARTS = """
import os, subprocess, sys
from tests.forked.start import commands
print(commands(), flush=True)
subprocess.run([commands() / "compresskit", "--version"], check=True)
sys.stdin.read()
"""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [commands() / "compresskit", *arguments]
    return subprocess.run(command, env=environment() | options.pop("env", {}), text=True, **options)


@pytest.fixture
def training(tmp_path: Path) -> subprocess.Popen[str]:
    """A program that trains for long."""
    (tmp_path / "net.yaml").write_text(RECIPE)
    command = [commands() / "compresskit", *LONG]
    client = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "runs/net-train/state.pt").exists)
    return client


def test_status_and_streams_are_the_programs_own(tmp_path):
    whole = run("--version", capture_output=True)
    assert (whole.returncode, whole.stdout, whole.stderr) == (0, f"compresskit {__version__}\n", "")
    wrong = run("train", "nowhere.yaml", capture_output=True, cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: nowhere.yaml: no such file\n"
    with open(tmp_path / "out.txt", "w") as file:
        run("--version", stdout=file)
    assert (tmp_path / "out.txt").read_text() == whole.stdout


def test_python_takes_code_a_module_and_a_file(tmp_path):
    code = "import sys; assert vars(sys.modules['__main__']) is globals(); print(__name__, sys.argv, sys.path[0])"
    (tmp_path / "file.py").write_text(code)
    for given in (("-c", code, "x"), ("file.py", "x"), ("-u", "-m", "file", "x")):
        installed = subprocess.run([sys.executable, *given], cwd=tmp_path, capture_output=True, text=True)
        assert installed.returncode == 0, installed.stderr
        forked = python(*given, cwd=tmp_path)
        assert (forked.stdout, forked.stderr) == (installed.stdout, "")


def test_a_signal_reaches_the_program(training):
    training.send_signal(signal.SIGTERM)
    _, errors = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "interrupted; --resume goes on from the last saved state" in errors


def test_it_ends_as_the_program_ends(training, tmp_path):
    (program,) = programs_in(tmp_path, but=training.pid)
    os.kill(program, signal.SIGKILL)
    training.communicate(timeout=60)
    assert training.returncode == -signal.SIGKILL


def test_a_client_that_is_killed_takes_the_program_with_it(training, tmp_path):
    assert programs_in(tmp_path, but=training.pid)
    training.kill()
    training.wait()
    wait_for(lambda: not programs_in(tmp_path, but=training.pid), seconds=10)
    training.stderr.close()


def test_what_is_read_at_the_start_cannot_be_changed():
    done = run("--version", env={"OMP_NUM_THREADS": "2"}, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "OMP_NUM_THREADS is read when a program starts" in done.stderr


def test_nothing_is_left_of_tests_that_are_killed():
    root = Path(__file__).parents[1]
    variables = environment() | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    tests = subprocess.Popen(
        [sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, text=True
    )
    with tests:
        folder = Path(tests.stdout.readline().strip())
        assert tests.stdout.readline() == f"compresskit {__version__}\n"
        assert (folder / "compresskit").exists()
        tests.kill()
    wait_for(lambda: not folder.exists())


def programs_in(folder: Path, but: int) -> list[int]:
    """The processes whose working directory is the folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder and int(link.parent.name) != but:
                found.append(int(link.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
