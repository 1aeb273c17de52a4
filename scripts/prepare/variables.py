"""Arrays of a published file, MATLAB's of version 5 to 7.3, HDF5 or NPZ, found by their names."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from compresskit.data.reading.arrays import opened
from compresskit.data.reading.regular import reading, regular
from compresskit.errors import DataError

AGAIN = "download it again, or save it anew"
LISTED = 20
Variables = Mapping[str, Callable[[], NDArray[Any]]]


@contextmanager
def variables(path: Path) -> Iterator[Variables]:
    """For each array a function that reads it, inside the block, as whoever wrote it saw its axes; complex numbers too.

    Fields of a structure are named STRUCTURE/FIELD. Raises DataError for what is missing, of another format or damaged.
    """
    regular(path, "give the file with channels and positions")
    with reading(path, "a file", "check its permissions"), path.open("rb") as file:
        head = file.read(10)
    if head == b"MATLAB 5.0":
        with reading(path, "a file of MATLAB", AGAIN):
            content = loadmat(path, simplify_cells=True)
        yield dict(_flat(content, ""))
    elif h5py.is_hdf5(path) or zipfile.is_zipfile(path):
        with opened(path) as arrays:
            plain = {name: read for name, read in arrays.items() if not name.startswith("#")}  # MATLAB's own
            yield {name: partial(_plain, read, turned=head == b"MATLAB 7.3") for name, read in plain.items()}
    else:
        raise DataError(f"{path}: no file of MATLAB (5 to 7.3), HDF5 or NPZ, or a damaged one; {AGAIN}")


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Callable[[], NDArray[Any]]]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            yield f"{prefix}{name}", partial(np.asarray, value)


def _plain(read: Callable[[], NDArray[Any]], *, turned: bool) -> NDArray[Any]:
    """turned: MATLAB 7.3 stores the last axis first; and complex numbers as pairs, which h5py knows by other names."""
    array = read()
    if array.dtype.names == ("real", "imag"):
        array = array["real"] + 1j * array["imag"]
    return array.T if turned else array


def named(path: Path, arrays: Variables, option: str, asked: str | None, guesses: tuple[str, ...]) -> NDArray[Any]:
    """The array that is asked for, or the one whose name, in any case, is the first of the guesses that there is.

    Raises DataError, with a list of the arrays, where there is none or more than one.
    """
    if asked is not None:
        names = [name for name in arrays if name == asked]
    else:
        lower = {name: name.rpartition("/")[2].lower() for name in arrays}
        names = next(filter(None, ([name for name in arrays if lower[name] == guess] for guess in guesses)), [])
    if len(names) == 1:
        return arrays[names[0]]()
    said = f"no array {asked!r}" if asked else f"{len(names) or 'no'} arrays that --{option} could be"
    listed = [_described(name, read) for name, read in list(arrays.items())[:LISTED]]
    raise DataError(
        f"{path}: holds {said}; name one with --{option}, of {', '.join(listed) or 'none: the file has no arrays'}"
    )


def _described(name: str, read: Callable[[], NDArray[Any]]) -> str:
    try:
        array = read()
    except DataError:
        return f"{name} (cannot be read)"
    return f"{name} {array.dtype} {array.shape}"
