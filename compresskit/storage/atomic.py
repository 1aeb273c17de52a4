"""Files appear whole or not at all: written beside their place, flushed, then renamed."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compresskit.errors import ResourceError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on leaving without error it is renamed to `path`.

    On any error the temporary file is removed and `path` stays as it was. Raises ResourceError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{path}: the disk is full; free some space or write elsewhere with --out") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, plain: dict[str, Any]) -> None:
    """Plain data as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2))
