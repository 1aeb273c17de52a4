"""Files of a downloaded archive, one after another, wherever it lies: zip, zip in zip, tar, or an extracted folder."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from compresskit.data.reading.regular import reading, regular
from compresskit.errors import DataError

AGAIN = "download it again"
Read = Callable[[], bytes]


def members(source: Path) -> Iterator[tuple[str, Read]]:
    """The name of each file, with a function that reads it; this works until the next one is asked for.

    Archives are read in their own order, folders in that of names. Raises DataError, the functions too, for what is
    missing, no archive, or damaged.
    """
    if os.path.isdir(source):  # False where it cannot be reached
        yield from _of_folder(source)
        return
    regular(source, "give the downloaded archive, or the folder that it was extracted to")
    if zipfile.is_zipfile(source):
        yield from _of_zip(source, str(source))
    elif _is_tar(source):
        yield from _of_tar(source)
    else:
        raise DataError(f"{source}: neither a zip nor a tar archive, or a damaged one; {AGAIN}")


def _is_tar(source: Path) -> bool:
    with reading(source, "an archive", AGAIN):
        return tarfile.is_tarfile(source)


def _of_folder(folder: Path) -> Iterator[tuple[str, Read]]:
    with reading(folder, "a folder", "check its permissions"):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), partial(_read, path, path.read_bytes)


def _of_zip(file: Path | IO[bytes], where: str) -> Iterator[tuple[str, Read]]:
    with reading(where, "a zip archive", AGAIN), zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            inside = f"{where}: {info.filename}"
            if info.filename.lower().endswith(".zip"):
                with TemporaryFile() as copy:
                    with reading(inside, "a zip archive", AGAIN), archive.open(info) as packed:
                        shutil.copyfileobj(packed, copy)
                    yield from _of_zip(copy, inside)
            elif not info.is_dir():
                yield info.filename, partial(_read, inside, archive.read, info)


def _of_tar(source: Path) -> Iterator[tuple[str, Read]]:
    with reading(source, "a tar archive", AGAIN), tarfile.open(source) as archive:
        for info in archive:
            if info.isfile():
                yield info.name, partial(_read, f"{source}: {info.name}", _content, archive, info)


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return b"" if file is None else file.read()


def _read(where: object, read: Callable[..., bytes], *arguments: Any) -> bytes:
    with reading(str(where), "a file", AGAIN):
        return read(*arguments)
