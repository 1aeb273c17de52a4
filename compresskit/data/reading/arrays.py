"""Arrays in one HDF5 or NPZ file of the user, read by name. One of the homes of h5py."""

import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from compresskit.data.reading.regular import reading, regular
from compresskit.errors import DataError
from compresskit.numerics.machine import total_memory

ADVICE = "write the file anew, as plain arrays of numbers"
Reader = Callable[[], NDArray[Any]]


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Reader]]:
    """For each array of the file, by its name, a function that reads it; they work inside the block.

    Raises DataError for what is no such file, a damaged one, and arrays that cannot be what was meant to be stored.
    """
    regular(path, "check data.path")
    with reading(path, "arrays", ADVICE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, for headers of Python 2
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                yield _datasets(file, path)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                yield {info.filename.removesuffix(".npy"): partial(_member, archive, info, path) for info in infos}
        else:
            raise DataError(f"{path}: neither an HDF5 nor an NPZ file, or a damaged one; check data.path")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """An array of an NPZ file; numpy never unpickles here."""
    _check_size(info.file_size, f"{path} {info.filename}")
    with archive.open(info) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # reading to the end has zipfile compare the checksum, too
            raise DataError(f"{path}: {info.filename} is longer than its array; {ADVICE}")
    return array


def _datasets(file: h5py.File, path: Path) -> dict[str, Reader]:
    names: list[str] = []
    file.visit(names.append)
    found = {name: file[name] for name in names}
    return {name: partial(_values, node, path) for name, node in found.items() if isinstance(node, h5py.Dataset)}


def _values(dataset: h5py.Dataset, path: Path) -> NDArray[Any]:
    where = f"{path} {dataset.name.lstrip('/')}"
    if dataset.shape is None:
        raise DataError(f"{where}: empty; give at least one sample")
    _check_size(dataset.nbytes, where)
    if dataset.external:
        raise DataError(f"{where}: its numbers lie in other files; store them in this one")
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            if source.file_name != ".":
                regular(path.parent / source.file_name, f"{where} is made of it, and HDF5 would fill in zeros")
    elif dataset.size and not dataset.id.get_storage_size():
        raise DataError(f"{where}: of shape {dataset.shape}, but nothing was ever written to it; write its values")
    elif dataset.chunks is not None:
        _check_chunks(dataset, where)
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return np.asarray(dataset.asstr()[()], dtype=np.str_)
    return np.asarray(dataset[()])


def _check_chunks(dataset: h5py.Dataset, where: str) -> None:
    """Raises DataError for chunks that HDF5 would read beyond their ends, which ends the process without a word.

    Its Fletcher-32 takes a checksum of 4 bytes off what is stored, be it less or nothing.
    """
    least = 5 if dataset.fletcher32 else 1

    def check(chunk: Any) -> None:
        if chunk.size < least:
            raise DataError(f"{where}: damaged, with a chunk of {chunk.size} bytes; {ADVICE}")

    dataset.id.chunk_iter(check)


def _check_size(nbytes: int, where: str) -> None:
    """Raises DataError where not even the whole memory of the machine would do: a damaged size, or a zip bomb."""
    memory = total_memory()
    if nbytes > memory:
        raise DataError(
            f"{where}: of {nbytes / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB of memory; store less of "
            "it, or write the file anew if that is not its size"
        )
