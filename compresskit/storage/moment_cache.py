"""Moments on disk: one HDF5 file an entry, trusted only for the weights, data, layers and options it was made of."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from torch import Tensor, fx

from compresskit.errors import CacheError
from compresskit.graph.format.table import to_table
from compresskit.numerics.moments.matrix import Matrix
from compresskit.numerics.moments.moments import Moments
from compresskit.storage.atomic import atomic_write

log = logging.getLogger("compresskit")

BLOCK_BYTES = 64 * 2**20  # read from disk at a time

Identity = Mapping[str, str]  # what an entry was made of: fingerprints and options by name


@dataclass(frozen=True)
class StoredMatrix:
    """One group's covariance (in, in), left on disk and read in blocks of rows."""

    path: Path
    group: int
    shape: tuple[int, int]
    device: torch.device

    def __matmul__(self, other: Tensor) -> Tensor:
        rows = max(1, BLOCK_BYTES // (8 * self.shape[1]))
        with h5py.File(self.path) as file:
            matrix = file["cxx"]
            blocks = [
                torch.from_numpy(matrix[self.group, start : start + rows]).to(self.device) @ other
                for start in range(0, self.shape[0], rows)
            ]
        return torch.cat(blocks)

    def read(self) -> Tensor:
        with h5py.File(self.path) as file:
            return torch.from_numpy(file["cxx"][self.group]).to(self.device)

    def diagonal(self) -> Tensor:
        with h5py.File(self.path) as file:
            return torch.from_numpy(file["diagonal"][self.group]).to(self.device)


@dataclass(frozen=True)
class MomentCache:
    """Entries of `folder` by name: whole moments, and parts of a pass over the data that is not done yet.

    stale: what to do with an entry of another identity: `recompute` (the log says why) or `fail`.
    device: where what is read goes to.
    """

    folder: Path
    stale: Literal["recompute", "fail"]
    device: torch.device

    def holds(self, name: str, identity: Identity) -> bool:
        """Whether there is an entry of this identity. Raises CacheError for another one where `stale` is fail."""
        path = self._path(name)
        if not path.exists():
            return False
        try:
            with h5py.File(path) as file:
                found = json.loads(file.attrs["identity"])
        except (OSError, KeyError, ValueError) as error:
            return self._refuse(path, f"it cannot be read ({error})")
        # neither may say more than the other: a teacher is there or not
        changed = sorted(key for key in identity | found if found.get(key) != identity.get(key))
        return not changed or self._refuse(path, f"it was made with other {', '.join(changed)}")

    def _refuse(self, path: Path, reason: str) -> Literal[False]:
        if self.stale == "fail":
            raise CacheError(
                f"{path}: {reason}; remove it, name another `moments.cache`, or set `moments.stale: recompute`"
            )
        log.warning("%s: %s, so the moments are computed again", path, reason)
        return False

    def write(self, name: str, identity: Identity, moments: Moments) -> None:
        """Keeps moments that are fresh from their sums, whole or not at all."""
        assert isinstance(moments.cxx, Tensor)
        with atomic_write(self._path(name)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["identity"] = json.dumps(identity)
            file.attrs["count"] = moments.count
            file["cxx"] = moments.cxx.cpu().numpy()
            file["diagonal"] = moments.cxx.diagonal(dim1=-2, dim2=-1).cpu().numpy()
            for field in ("mean_x", "mean_y", "cyx", "cyy"):
                file[field] = getattr(moments, field).cpu().numpy()

    def read(self, name: str) -> Moments:
        """The moments of an entry that is held; their matrices stay on disk."""
        path = self._path(name)
        with h5py.File(path) as file:
            groups, features, _ = file["cxx"].shape
            small = {field: self._tensor(file[field]) for field in ("mean_x", "mean_y", "cyx", "cyy")}
            count = int(file.attrs["count"])
        matrices: list[Matrix] = [StoredMatrix(path, g, (features, features), self.device) for g in range(groups)]
        return Moments(count=count, cxx=matrices, **small)

    def write_part(self, name: str, rank: int, identity: Identity, done: int, sums: Mapping[str, Tensor]) -> None:
        """Keeps the sums of one process behind its first `done` batches."""
        with atomic_write(self._part(name, rank)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["identity"] = json.dumps(identity)
            file.attrs["done"] = done
            for field, tensor in sums.items():
                file[field] = tensor.cpu().numpy()

    def batches_done(self, name: str, rank: int, identity: Identity) -> int:
        """Of a part of this identity; 0 where there is none."""
        try:
            with h5py.File(self._part(name, rank)) as file:
                return int(file.attrs["done"]) if json.loads(file.attrs["identity"]) == identity else 0
        except (OSError, KeyError, ValueError):
            return 0

    def read_part(self, name: str, rank: int, sums: Mapping[str, Tensor]) -> None:
        """Fills `sums` with what a part holds."""
        with h5py.File(self._part(name, rank)) as file:
            for field, tensor in sums.items():
                tensor.copy_(self._tensor(file[field]))

    def drop_part(self, name: str, rank: int) -> None:
        self._part(name, rank).unlink(missing_ok=True)

    def _tensor(self, stored: h5py.Dataset) -> Tensor:
        return torch.from_numpy(np.asarray(stored)).to(self.device)

    def _path(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.h5"

    def _part(self, name: str, rank: int) -> Path:
        return self._path(name).with_suffix(f".part{rank}")


def fingerprint(network: fx.GraphModule) -> str:
    """SHA-256 of the network's graph and of all its tensors."""
    digest = hashlib.sha256(json.dumps(to_table(network), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
