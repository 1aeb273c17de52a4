"""The program as a process: signals, closed and full streams, lost processes, and errors that nobody foresaw."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.commands.evaluate import verb as evaluate
from compresskit.commands.inspect import verb as inspect
from compresskit.errors import within
from tests.forked.start import commands, environment

LONG = ("train", "net.yaml", "train.epochs=500")
PROGRAM = str(Path(sys.executable).with_name("compresskit"))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def started(
    folder: Path, *arguments: str, before: tuple[str, ...] = (), program: str = PROGRAM, **streams
) -> subprocess.Popen:
    """Told of hang-ups, even if whoever runs the tests has said `nohup`."""
    command = [*before, program, *arguments]
    streams = {"stderr": subprocess.PIPE} | streams
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=folder, env=environment(), preexec_fn=heard, **streams)


def ended(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=60)
    text = (errors or b"").decode()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM] * 2,
        [signal.SIGINT] * 5,
        [signal.SIGHUP],
        [signal.SIGHUP, signal.SIGTERM, signal.SIGINT],
    ],
    ids=lambda signals: "-".join(each.name for each in signals),
)
def test_signals_end_it_and_the_run_goes_on(recipe, tmp_path, signals):
    process = started(tmp_path, *LONG)
    wait_for((tmp_path / "runs/net-train/state.pt").exists)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    ended(process)
    assert process.returncode == 130
    epochs = len((tmp_path / "runs/net-train/metrics.csv").read_text().splitlines()) - 1
    again = started(tmp_path, *LONG, "--resume", program=str(commands() / "compresskit"))
    wait_for(lambda: len((tmp_path / "runs/net-train/metrics.csv").read_text().splitlines()) - 1 > epochs)
    again.kill()
    again.communicate()


def test_a_signal_that_is_ignored_stays_so(recipe, tmp_path):
    process = started(tmp_path, *LONG, before=("nohup",), stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "runs/net-train/state.pt").exists)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert process.returncode == 130


@pytest.mark.parametrize("after", [0.02, 0.1, 0.3, 0.8, 1.5, 2.5])
def test_a_signal_while_it_starts_shows_no_traceback(recipe, tmp_path, after):
    process = started(tmp_path, *LONG)
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert process.returncode in (130, -signal.SIGTERM)  # the latter before Python itself was there


_LIBRARY = """
import os, signal, time
try:  # as libraries do around a part of them that may be missing
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(20):
        time.sleep(0.01)
    if AGAIN:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
except BaseException:
    print("a part is missing", flush=True)
"""
_IMPORTS = """
import sys, time
from compresskit import process
process.prepare()
try:
    import library
    print("whole", flush=True)
    time.sleep(10)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("again", [False, True])
def test_a_signal_in_the_middle_of_an_import_waits_for_its_end(tmp_path, again):
    """But not a second one."""
    (tmp_path / "library.py").write_text(_LIBRARY.replace("AGAIN", str(again)))
    command, started = [sys.executable, "-c", _IMPORTS], time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "" if again else "whole\n")
    assert time.perf_counter() - started < 5


def test_a_dry_run_has_nothing_to_resume(recipe, trained, monkeypatch, call):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    from compresskit.commands.train import verb as train

    monkeypatch.setattr(train, "run", interrupted)
    dry = call("train", recipe, "--dry-run")
    assert (dry.status, dry.err) == (130, "interrupted\n")
    assert call("train", recipe).err == "interrupted; --resume goes on from the last saved state\n"


@pytest.mark.parametrize("redirection", ["| head -1", "| true"])
def test_a_reader_that_leaves_early_is_no_error(tmp_path, redirection):
    line = f"set -o pipefail; {PROGRAM} show recipes {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_standard_output_is_said(recipe, trained, tmp_path):
    line = f"{PROGRAM} fuse net.yaml -c {trained / 'runs/net-train'} --out out -q --json > /dev/full"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output cannot be written (No space left on device); the files are all there\n"
    )
    assert json.loads((tmp_path / "out/report.json").read_text())["verb"] == "fuse"


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "2>/dev/full", ">&- 2>&-", "2>&1 >/dev/null | true"])
def test_closed_and_broken_streams_stop_nothing(recipe, trained, tmp_path, redirection):
    line = f"set -o pipefail; {PROGRAM} fuse net.yaml -c {trained / 'runs/net-train'} --out out {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr + done.stdout
    assert (tmp_path / "out/report.md").exists()


class Broken(Exception):
    """None that anybody knows."""


def singular() -> None:
    np.linalg.inv(np.zeros((2, 2)))


def not_definite() -> None:
    torch.linalg.cholesky(-torch.eye(2))


def shapes() -> None:
    torch.ones(2, 3) @ torch.ones(2, 3)


def raising(kind: type[Exception], *arguments: object) -> Callable[[], None]:
    def fail() -> None:
        with within("layer conv2"):
            raise kind(*arguments)

    return fail


@pytest.mark.parametrize(
    ("fail", "status", "line"),
    [
        (singular, 1, r"error: inspect: a factorisation failed \(Singular matrix\); check the weights and the data"),
        (not_definite, 1, r"error: inspect: a factorisation failed \(linalg.cholesky: .*; check the weights"),
        (shapes, 1, r"error: inspect: torch cannot do it \(mat1 and mat2 shapes .*\), at \S+:\d+; --debug shows"),
        (raising(MemoryError), 1, r"error: inspect: layer conv2: the device has too little memory \(none is left\)"),
        (
            raising(OSError, errno.EROFS, "Read-only file system", "/mnt/model.pt"),
            1,
            r"error: inspect: layer conv2: /mnt/model.pt: Read-only file system; check the path, its permissions",
        ),
        (
            raising(Broken, "odd"),
            70,
            r"error: inspect: layer conv2: internal error, Broken: odd, at \S+:\d+; this is a fault of compresskit: "
            r"please report it with the output of --debug",
        ),
        (raising(KeyError, "x"), 70, r"internal error, KeyError: 'x'"),
        (raising(EOFError, "early"), 70, r"internal error, EOFError: early"),
    ],
)
def test_what_nobody_foresaw_is_one_line(call, trained, monkeypatch, fail, status, line):
    monkeypatch.setattr(inspect, "run", lambda *arguments: fail())
    outcome = call("inspect", trained / "runs/net-train/model.pt")
    assert outcome.status == status
    assert re.match(f"(?:.*){line}", outcome.err), outcome.err
    assert len(outcome.err.splitlines()) == 1
    whole = call("inspect", trained / "runs/net-train/model.pt", "--debug")
    assert "Traceback (most recent call last)" in whole.err
    assert whole.err.splitlines()[-1] == outcome.err.strip()


def test_a_warning_of_each_trial_is_said_once(recipe, tmp_path):
    """As with several jobs; pytest has the log of what is called here."""
    process = started(tmp_path, "train", "net.yaml", "trials=2", "train.epochs=1", "~data.validation", "--out", "two")
    assert ended(process).count("best epoch chosen on the test set") == 1
    assert process.returncode == 0


def test_debug_shows_where_a_known_error_comes_from(call, recipe):
    plain, whole = (call("evaluate", recipe, *debug, "-c", "nowhere.pt") for debug in ((), ("--debug",)))
    assert plain.err.splitlines() == [whole.err.splitlines()[-1]]
    assert evaluate.__file__ in whole.err


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "compresskit")


def processes_of(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_of_torchrun_that_is_killed_is_named(recipe, tmp_path, victim):
    command = [*TORCHRUN, *LONG, "--device", "cpu"]
    run = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for((tmp_path / "runs/net-train/state.pt").exists)
    ranks = {
        int(re.search(rb"\0RANK=(\d)", Path(f"/proc/{pid}/environ").read_bytes())[1]): pid
        for pid in processes_of(run.pid)
        if b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
    }
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = run.communicate(timeout=90)
    lines = [line for line in errors.decode().splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: process {victim} of 2 (pid {ranks[victim]}) has ended: it was killed, ran out of memory, or says "
        "above what stopped it; --resume goes on from the last saved state"
    ]
