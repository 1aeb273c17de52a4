"""Files of the user before a library opens them: what is no regular file would stop a run, or make it wait for ever."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compresskit.errors import DataError, ResourceError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def at_home(path: str) -> Path:
    """The path with `~` made a home folder. Raises DataError for a user that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: there is no such home folder; write the folder out") from error


def regular(path: str | Path, advice: str = "mend or remove it") -> int:
    """Bytes of a regular file, which is not opened. Raises DataError for what is missing, or something else."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        if os.path.islink(path):
            raise DataError(f"{path}: a link to {os.readlink(path)}, which cannot be reached; {advice}") from error
        missing = isinstance(error, FileNotFoundError)
        text = "there is no such file" if missing else f"cannot be reached ({reason(error)})"
        raise DataError(f"{path}: {text}; {advice}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise DataError(f"{path}: {kind}, where a file is needed; {advice}")
    return found.st_size


@contextmanager
def reading(path: str | Path, what: str, advice: str = "mend or remove it") -> Iterator[None]:
    """Around a library that reads a file of the user: whatever it raises becomes a DataError of one line.

    A parser in front of a damaged file fails in its own ways (KeyError, EOFError, zlib.error, struct.error ...), and
    no list of them was ever complete.
    """
    try:
        yield
    except (DataError, ResourceError):
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: needs more memory than there is, or its sizes are damaged ({reason(error)}); {advice}"
        ) from error
    except Exception as error:
        raise DataError(f"{path}: cannot be read as {what} ({reason(error)}); {advice}") from error


def reason(error: Exception) -> str:
    """The words of an error on one line, or its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
