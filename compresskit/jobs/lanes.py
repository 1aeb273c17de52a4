"""Where a run says what each of its jobs is doing, and how their processes reach it."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

_APART = 0.2  # seconds between two updates that travel


class Lane(Protocol):
    """Where a command says what it is doing."""

    def start(self, task: str, total: int) -> None: ...

    def update(self, done: int, note: str = "") -> None: ...

    def log(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        """Says it now, and once among the notes of the report."""
        ...

    def end(self) -> None:
        """What was started is over, however it went."""
        ...


class Counter:
    """Tells a command's progress of one more thing done, each time it is called."""

    def __init__(self, progress: Lane) -> None:
        self._progress, self._done = progress, 0

    def __call__(self) -> None:
        self._done += 1
        self._progress.update(self._done)


def percents(progress: Lane, label: str, work: Sequence[float]) -> Callable[[], None]:
    """Tells the share of the work that is done, behind each of its parts, of which one may take longer than all others.

    work: of each part, in any unit.
    """
    total, done = sum(work), accumulate(work)
    progress.start(f"{label}, percent", 100)
    return lambda: progress.update(int(100 * next(done) / total))


class Board(Protocol):
    """One display for all jobs."""

    def lane(self, name: str) -> Lane:
        """For the job of that name."""
        ...


class Sent(logging.Handler):
    """A command's progress, and what is logged meanwhile, sent to the process that shows it."""

    def __init__(self, send: Callable[[tuple[Any, ...]], None]) -> None:
        super().__init__()
        self._send, self._sent = send, 0.0

    def start(self, task: str, total: int) -> None:
        self._send(("start", task, total))

    def update(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._sent > _APART:
            self._sent = time.monotonic()
            self._send(("update", done, note))

    def log(self, text: str) -> None:
        self._send(("log", text))

    def note(self, text: str) -> None:
        self._send(("note", text))

    def emit(self, record: logging.LogRecord) -> None:
        self._send(("warn" if record.levelno >= logging.WARNING else "log", record.getMessage()))


class Shown:
    """Gives to a lane what a process sends. warned: what was warned of already, by any of them."""

    def __init__(self, lane: Lane, warned: set[str]) -> None:
        self.lane, self._warned = lane, warned

    def __call__(self, kind: str, *what: Any) -> None:
        if kind == "warn":
            self._warn(*what)
        else:
            getattr(self.lane, kind)(*what)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logging.getLogger("compresskit").warning("%s", text)
