"""Locks of folders: one process at a time writes there, and who comes second hears who that is. Home of filelock."""

import json
import os
import platform
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl  # not on Windows
except ImportError:
    fcntl = None  # type: ignore[assignment]

from compresskit import process
from compresskit.errors import RunFolderError

LINGER = 15.0  # seconds that the workers of a process that was killed may hold its lock
_POLL = 0.2
_held: set[Path] = set()  # lock files of this process


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, or held it last."""

    pid: int
    host: str
    since: str
    command: str

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be gone; of another machine nothing is known."""
        if self.host != platform.node():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it is there, and somebody else's
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}), since {self.since}"


class Lock:
    """A file that one process at a time holds. The system takes it from a process that ends, however it ends.

    Who holds it stands in a file beside it, for messages alone.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, FileLock(path)
        self._said = path.with_name(f"{path.name}.owner")

    def acquire(self, seconds: float = 0.0) -> bool:
        """Whether it is ours now. seconds: how long to wait for it; longer where its owner has ended but for workers.

        Raises RunFolderError where the folder cannot be written.
        """
        wait_until = time.monotonic() + seconds
        lingers_until = time.monotonic() + LINGER
        while not self._try():
            owner = self.owner()
            patience = lingers_until if owner is not None and owner.has_ended else wait_until
            if time.monotonic() >= patience:
                return False
            time.sleep(_POLL)
        _held.add(self._path)
        owner = Owner(os.getpid(), platform.node(), time.strftime("%Y-%m-%d %H:%M"), shlex.join(process.command()))
        with suppress(OSError):  # on a full disk nobody hears who holds it
            self._said.write_text(json.dumps(asdict(owner)))
        return True

    def release(self) -> None:
        _held.discard(self._path)
        self._said.unlink(missing_ok=True)
        self._lock.release()

    def is_held(self) -> bool:
        """Whether a process holds it now, on whichever machine; nothing is written, and the folder may be read-only.

        As far as its owner's number tells where the system has no other way: after a reboot it may be another's.
        """
        try:
            with self._path.open("rb") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            pass
        owner = self.owner()
        return owner is not None and not owner.has_ended

    def owner(self) -> Owner | None:
        """Who holds it, as far as can be read."""
        try:
            return Owner(**json.loads(self._said.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _try(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise RunFolderError(f"{self._path}: it cannot be locked ({error.strerror}); write elsewhere") from error
        return True


@contextmanager
def holding(lock: Lock) -> Iterator[None]:
    """Releases a lock that was acquired."""
    try:
        yield
    finally:
        lock.release()


def is_lock(path: Path) -> bool:
    """Whether a file belongs to a lock."""
    return path.name.startswith(".lock")


def lost(path: Path) -> Path | None:
    """The folder above `path` that this process has locked and somebody has removed since; None if there is none."""
    return next((held.parent for held in _held if held.parent in path.parents and not held.exists()), None)
