"""Runs of the program in forked processes, which spares each of them the start of torch, and what became of them."""

import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compresskit import __main__ as program
from compresskit.storage.checkpoint import load

LIMIT = 20.0  # seconds, after which a run counts as stuck
MEMORY = 8 * 2**30  # bytes of address space that a run on damaged files may take
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Outcome:
    """How a run ended. status: negative for a signal, None if it was stopped at the limit."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is never allowed; "" if there is nothing of it."""
        if self.status is None:
            return "stuck"
        if "Traceback" in self.out + self.err:
            return "traceback"
        if self.status == 70 or self.status < 0:
            return f"status {self.status}"
        return "no line of error" if self.status in (1, 2) and "error: " not in self.err else ""


@dataclass(frozen=True)
class Running:
    """A run that was started in `folder`."""

    child: int
    out: Path
    err: Path
    began: float

    def ended(self) -> Outcome:
        """Waits for it, up to the limit."""
        status = _wait(self.child)
        texts = [path.read_text(errors="replace") for path in (self.out, self.err)]
        return Outcome(status, *texts, time.monotonic() - self.began)


def started(
    folder: Path, arguments: Sequence[object], name: str = "", *, watch: Callable[[], object] = lambda: None,
    memory: int | None = None,
) -> Running:  # fmt: skip
    """The program in `folder`, in a process of its own. watch: called in it before it starts."""
    out, err = folder.with_name(f"{folder.name}{name}.out"), folder.with_name(f"{folder.name}{name}.err")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_program(folder, [str(argument) for argument in arguments], out, err, watch, memory)
    return Running(child, out, err, began)


def run(
    folder: Path, arguments: Sequence[object], *, kill_at: int | None = None, memory: int | None = None,
    at: tuple[int, Callable[[], object]] | None = None,
) -> Outcome:  # fmt: skip
    """The program in `folder` to its end. kill_at: the number of the file operation below it before which it is killed.

    at: the number of an operation, and what happens before that.
    """
    if kill_at is not None:
        at = (kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return started(folder, arguments, watch=lambda: _watch(folder, at), memory=memory).ended()


def operations(folder: Path, arguments: Sequence[object]) -> int:
    """How many file operations a run makes below its folder."""
    count = folder.with_name(f"{folder.name}.operations")
    outcome = started(folder, arguments, watch=lambda: _watch(folder, None, count)).ended()
    assert outcome.status == 0, f"the run that is to be killed does not even end: {outcome.err}"
    return int(count.read_text())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load(path).network.state_dict()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@dataclass
class Tally:
    """Counts of what was tried and of what went wrong, with the first examples."""

    tried: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: Outcome, what: str, fault: str = "") -> None:
        self.tried[kind] += 1
        if found := outcome.fault or fault:
            self.faults[found] += 1
            self.examples.append(f"{kind}, {what}: {found}: {outcome.err.strip()[-600:]}")

    def check(self, name: str, least: int) -> None:
        """Prints the row of the table; fails where anything went wrong, or too little was tried."""
        print(f"\n{name}: {self.tried.total()} tried ({dict(self.tried)}), faults: {dict(self.faults) or 'none'}")
        assert not self.faults, "\n".join(self.examples[:12])
        assert self.tried.total() >= least


def _watch(folder: Path, at: tuple[int, Callable[[], object]] | None, count: Path | None = None) -> None:
    """Counts, from now on, operations on files below the folder. at: what happens before one of them."""
    below, seen = f"{folder}{os.sep}", 0

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = given
            counts = isinstance(flags, int) and bool(flags & _WRITING)
        else:
            path, counts = (given[0] if given else None), event in _OPERATIONS
        if not counts or not isinstance(path, str | os.PathLike):
            return
        if os.path.abspath(os.fspath(path)).startswith(below):
            seen += 1
            if at is not None and seen == at[0]:
                at[1]()
            if count is not None:
                count.write_text(str(seen))

    sys.addaudithook(hook)


def _be_the_program(
    folder: Path, arguments: list[str], out: Path, err: Path, watch: Callable[[], object], memory: int | None
) -> None:
    """In the child, which never comes back."""
    status = 1
    try:
        os.setpgid(0, 0)
        for path, stream in ((out, 1), (err, 2)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(folder)
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        sys.argv = ["compresskit", *arguments]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        watch()
        program.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _wait(child: int) -> int | None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
