"""The program as a process: signals end it with its state kept, and no stream that is closed or full stops it."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

INTERRUPTED = 130
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_POSTPONED = 0.05  # seconds
_asked = False  # to end


def prepare() -> None:
    """To be called before anything else is imported, which takes a while in which a signal may come.

    The first signal raises KeyboardInterrupt, behind an import that is under way; the second ends the process at once:
    files are whole at any time.
    Signals that are ignored (nohup) stay so. What cannot be written to standard error is dropped.
    """
    for name in _SIGNALS:
        number = getattr(signal, name, None)  # SIGHUP: not on Windows
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None: it was closed by the shell
    sys.stderr = _Forgiving(sys.stderr or open(os.devnull, "w"))
    sys.unraisablehook = _unraisable


def command() -> list[str]:
    """The line that started it; of `python -m compresskit` that of the installed program."""
    name = Path(sys.argv[0]).name
    return ["compresskit" if name == "__main__.py" else name, *sys.argv[1:]]


def settle() -> None:
    """From here on no signal counts: all that is left is to say why it ends."""
    for name in (*_SIGNALS, "SIGALRM"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) in (_interrupt, _raise):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_with_parent() -> None:
    """From here on this process, which multiprocessing started, ends at once when the one that started it has ended."""
    from multiprocessing import parent_process  # few programs are several processes

    parent = parent_process()
    if parent is not None:
        Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: "BaseProcess") -> None:
    parent.join()
    os._exit(INTERRUPTED)


def is_asked_to_end() -> bool:
    """Whether a signal has come."""
    return _asked


def abandon_stdout() -> None:
    """Nobody reads it any more: what is left to write goes nowhere, at the end of the process, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def leave(status: int) -> NoReturn:
    """Ends the process without tearing anything down."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(status)


@contextmanager
def warnings() -> Iterator[list[str]]:
    """What is warned of meanwhile: it belongs into the report, too."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("compresskit"), Kept(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@contextmanager
def importing() -> Iterator[None]:
    """For imports that take long: no garbage is collected, since what modules define stays, and to look through it
    takes a tenth of them."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


class _Forgiving:
    """A stream whose write never fails: a terminal that was closed is no reason to lose a night's work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it was closed
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked:
        os._exit(INTERRUPTED)
    _asked = True
    _raise(number, frame)


def _raise(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, or a little later where modules are being imported: libraries catch whatever comes in the
    middle of that, and go on without a part."""
    if not _is_importing(frame) or not hasattr(signal, "setitimer"):  # not on Windows
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, _POSTPONED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    """An error where nobody can catch it, in a destructor say: an interruption must not be lost there."""
    if isinstance(what.exc_value, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        leave(INTERRUPTED)
    sys.stderr.write(f"in cleaning up: {type(what.exc_value).__name__}: {what.exc_value}\n")
