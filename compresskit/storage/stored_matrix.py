"""Matrices that stay in an HDF5 file, and are read in blocks of rows."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from compresskit.errors import CacheError, first_line

BLOCK_BYTES = 64 * 2**20  # read from disk at a time
DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError)  # what h5py raises at a file that is broken
LOST = "it was removed or damaged while this run needed it"


@dataclass(frozen=True)
class StoredMatrix:
    """One group's covariance (in, in), left in a file that stays open, and read in blocks of rows."""

    file: h5py.File
    group: int
    shape: tuple[int, int]
    device: torch.device

    def __matmul__(self, other: Tensor) -> Tensor:
        rows = max(1, BLOCK_BYTES // (8 * self.shape[1]))
        starts = range(0, self.shape[0], rows)
        return torch.cat([self._rows("cxx", slice(start, start + rows)) @ other for start in starts])

    def read(self) -> Tensor:
        return self._rows("cxx", slice(None))

    def diagonal(self) -> Tensor:
        return self._rows("diagonal", slice(None))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file itself."""
        return _reopened, (self.file.filename, self.group, self.shape, self.device)

    def _rows(self, name: str, rows: slice) -> Tensor:
        try:
            return to_tensor(self.file[name][self.group, rows], self.device)
        except DAMAGE as error:
            raise CacheError(
                f"{self.file.filename}: it was damaged while it was in use ({first_line(error)}); run the command "
                "again with --resume"
            ) from error


def _reopened(path: str, group: int, shape: tuple[int, int], device: torch.device) -> StoredMatrix:
    return StoredMatrix(_opened(Path(path)), group, shape, device)


@lru_cache(maxsize=1)  # the groups of a convolution share their file
def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except DAMAGE as error:
        raise CacheError(f"{path}: {LOST} ({first_line(error)}); run the command again with --resume") from error


def to_tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(device)
