"""Files that are read: what stands in the way is told in a line; and their hashes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from compresskit.errors import CheckpointError


def file_hash(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Around the reading of a file. Raises CheckpointError for what cannot be read."""
    try:
        mode = path.stat().st_mode
        if not S_ISREG(mode) and not S_ISDIR(mode):  # to open a pipe would wait for ever
            raise CheckpointError(f"{path}: it is no file but a pipe or a device; name the model.pt of a run")
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; name the model.pt of a run that has ended") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: it is a folder; name the model.pt in it") from error
    except OSError as error:
        raise CheckpointError(f"{path}: it cannot be read ({error.strerror}); check its permissions") from error
