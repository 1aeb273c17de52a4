"""Files appear whole or not at all: written beside their place, flushed, then renamed."""

import errno
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from compresskit.errors import CompresskitError, ResourceError, RunFolderError
from compresskit.storage import lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on leaving without error it is renamed to `path`.

    On any error the temporary file is removed and `path` stays as it was; what a killed process leaves of it is
    `is_temporary`. Raises ResourceError when the disk is full, RunFolderError when nothing can be written there, or
    the run's folder is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if gone := lock.lost(path):
            raise RunFolderError(f"{gone}: somebody has removed it while this run was writing there; start it again")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether it is what a process was writing when it was killed, or writes now."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def unwritable(path: Path, error: OSError) -> CompresskitError:
    """What to tell the user of an error in writing `path`."""
    if error.errno in _FULL or "errno = 28" in str(error):  # 28: HDF5 tells of a full disk in words alone
        return ResourceError(f"{path}: the disk is full; free some space or write elsewhere with --out")
    reason = error.strerror or str(error).splitlines()[0]
    return RunFolderError(f"{path}: it cannot be written ({reason}); write elsewhere with --out")


def write_json(path: Path, plain: dict[str, Any]) -> None:
    """Plain data as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2))


def write_arrays(path: Path, arrays: "Mapping[str, NDArray[Any]]") -> None:
    """An .npz file of arrays by any names; np.savez takes some for arguments of its own, and loses them or fails."""
    import numpy as np

    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array))


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Tensors and plain data as torch.save writes them, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        _save(content, file)


def _save(content: Mapping[str, Any], file: BinaryIO) -> None:
    """To a file, not a path, which torch would write into it; a full disk raises OSError, as it does elsewhere."""
    import torch  # a second, for which those that write text alone should not wait

    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch's archive writer, on closing, about what it could not write
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _sync(folder: Path) -> None:
    """Makes a rename in the folder last; some network file systems know no such thing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
