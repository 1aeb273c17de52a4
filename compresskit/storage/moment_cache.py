"""Moments on disk: one HDF5 file an entry, named by what it was made of and checked by its sums when it is read."""

import errno
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, TypeVar

import h5py
import numpy as np
import torch
from torch import Tensor, fx

from compresskit.errors import CacheError, first_line
from compresskit.graph.format.table import to_table
from compresskit.numerics.moments.matrix import Matrix
from compresskit.numerics.moments.moments import Moments
from compresskit.storage import stored_matrix
from compresskit.storage.atomic import atomic_write, is_temporary, unwritable
from compresskit.storage.lock import Lock
from compresskit.storage.stored_matrix import DAMAGE, LOST, StoredMatrix, to_tensor

log = logging.getLogger("compresskit")

VERSION = "2"  # of the files' layout; 1 had neither checksums nor the identity in its name
CHUNK_BYTES = 2**20  # that one checksum is for
_HEAD = 512  # bytes before HDF5's own, the least that it leaves to its users: the digest of all behind them
_DIGITS = 16  # of the identity in a file's name
_SMALL = ("mean_x", "mean_y", "cyx", "cyy")

Identity = Mapping[str, str]  # what an entry was made of: fingerprints and options by name
Shapes = Mapping[str, tuple[int, ...]]
T = TypeVar("T")


@dataclass(frozen=True)
class MomentCache:
    """Entries of `folder` by name and identity: whole moments, and parts of a pass over the data that is not done yet.

    Two identities never share a file, so that runs may share the folder.
    stale: what to do where there are entries of other identities alone, or one is damaged: `recompute` or `fail`.
    device: where what is read goes to.
    """

    folder: Path
    stale: Literal["recompute", "fail"]
    device: torch.device

    def lock(self, common: Identity) -> Lock:
        """For whoever computes entries whose identities have `common` in common. Raises RunFolderError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return Lock(self.folder / f".lock-{_digest(common)}")

    def holds(self, name: str, identity: Identity, shapes: Shapes) -> bool:
        """Whether there is an entry of this identity, undamaged: all its numbers are read, finite, of these shapes.

        Raises CacheError where there is none and `stale` is fail, unless there is no entry of that name at all.
        """
        path = self._path(name, identity)
        if not path.exists():
            others = sorted(self.folder.glob(f"{_stem(name)}-{'[0-9a-f]' * _DIGITS}.h5"))
            return self._refuse(others[0], self._changed(others[0], identity)) if others else False
        if damage := _damage(path, identity, {**shapes, "diagonal": shapes["cxx"][:2]}):
            log.warning("%s: it is damaged (%s), so the moments are computed again", path, damage)
            return self._refuse(path, f"it is damaged ({damage})")
        return True

    def write(self, name: str, identity: Identity, moments: Moments) -> None:
        """Keeps moments that are fresh from their sums, whole or not at all."""
        assert isinstance(moments.cxx, Tensor)
        tensors = {field: getattr(moments, field) for field in ("cxx", *_SMALL)}
        tensors["diagonal"] = moments.cxx.diagonal(dim1=-2, dim2=-1)
        path = self._path(name, identity)
        _drop_temporaries(path)
        _write(path, identity, moments.count, tensors)

    def read(self, name: str, identity: Identity) -> Moments:
        """The moments of an entry that is held; their matrices stay on disk."""
        path = self._path(name, identity)
        try:
            file = h5py.File(path, "r")
            groups, features, _ = file["cxx"].shape
            small = {field: to_tensor(file[field][()], self.device) for field in _SMALL}
            count = int(file.attrs["count"])
        except DAMAGE as error:
            raise CacheError(f"{path}: {LOST} ({first_line(error)}); run the command again with --resume") from error
        matrices: list[Matrix] = [StoredMatrix(file, g, (features, features), self.device) for g in range(groups)]
        return Moments(count=count, cxx=matrices, **small)

    def write_part(self, name: str, rank: int, identity: Identity, done: int, sums: Mapping[str, Tensor]) -> None:
        """Keeps the sums of one process behind its first `done` batches."""
        _write(self._part(name, rank, identity), identity, done, sums)

    def batches_done(self, name: str, rank: int, identity: Identity, shapes: Shapes) -> int:
        """Of a part of this identity; 0 where there is none, or it is damaged."""
        path = self._part(name, rank, identity)
        if not path.exists():
            return 0
        if damage := _damage(path, identity, shapes):
            log.warning("%s: it is damaged (%s), so that pass starts anew", path, damage)
            return 0
        with h5py.File(path, "r") as file:
            return int(file.attrs["count"])

    def read_part(self, name: str, rank: int, identity: Identity, sums: Mapping[str, Tensor]) -> None:
        """Fills `sums` with what a part holds."""
        with h5py.File(self._part(name, rank, identity), "r") as file:
            for field, tensor in sums.items():
                tensor.copy_(to_tensor(file[field][()], self.device))

    def drop_part(self, name: str, rank: int, identity: Identity) -> None:
        """Removes a part, and what a killed process left of writing one."""
        path = self._part(name, rank, identity)
        path.unlink(missing_ok=True)
        _drop_temporaries(path)

    def _refuse(self, path: Path, reason: str) -> Literal[False]:
        if self.stale == "fail":
            raise CacheError(
                f"{path}: {reason}; remove it, name another `moments.cache`, or set `moments.stale: recompute`"
            )
        return False

    def _changed(self, path: Path, identity: Identity) -> str:
        """In what an entry differs; neither identity may say more than the other: a teacher is there or not."""
        try:
            if not _is_whole(path):
                return "it is damaged"
            with h5py.File(path, "r") as file:
                found = json.loads(file.attrs["identity"])
        except DAMAGE:
            return "it cannot be read"
        changed = sorted(key for key in identity | found if found.get(key) != identity.get(key))
        return f"it was made with other {', '.join(changed)}"

    def _path(self, name: str, identity: Identity) -> Path:
        return self.folder / f"{_stem(name)}-{_digest(identity)}.h5"

    def _part(self, name: str, rank: int, identity: Identity) -> Path:
        return self._path(name, identity).with_suffix(f".part{rank}")


def _write(path: Path, identity: Identity, count: int, tensors: Mapping[str, Tensor]) -> None:
    """Tensors with a checksum for each chunk (Fletcher-32), behind a digest of the whole file."""
    with atomic_write(path) as temporary:
        try:
            with h5py.File(temporary, "w", libver=("v110", "latest"), userblock_size=_HEAD) as file:
                file.attrs.update({"identity": json.dumps(identity), "count": count})
                for name, tensor in tensors.items():
                    values = tensor.cpu().numpy()
                    chunks = _chunks(values.shape) if values.size else None
                    file.create_dataset(name, data=values, chunks=chunks, fletcher32=bool(values.size))
        except RuntimeError as error:  # what h5py makes of a disk that is full when the file is closed
            raise OSError(errno.ENOSPC if "errno = 28" in str(error) else errno.EIO, str(error)) from error
        digest = _digest_of(temporary)
        with temporary.open("r+b") as head:
            head.write(digest)


def _digest_of(path: Path) -> bytes:
    """SHA-256, in hexadecimal, of what HDF5 wrote. It is compared before HDF5 opens a file: damage to its structure can
    make it crash, or loop without end."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(_HEAD)
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest().encode()


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(2 * hashlib.sha256().digest_size)
    return head == _digest_of(path)


def _drop_temporaries(path: Path) -> None:
    """What killed processes left of writing this very file; whoever writes it now holds the lock."""
    for rest in path.parent.glob(f".{path.name}.*"):
        if is_temporary(rest):
            rest.unlink(missing_ok=True)


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Whole rows of the last dimension, as many of them as make about CHUNK_BYTES."""
    *outer, last = shape
    rows = max(1, CHUNK_BYTES // (8 * last))
    if not outer:
        return (min(last, CHUNK_BYTES // 8),)
    return (*[1] * (len(outer) - 1), min(rows, outer[-1]), last)


def _damage(path: Path, identity: Identity, shapes: Shapes) -> str:
    """What is wrong with a file, all of whose numbers are read for it; "" if nothing is."""

    def look(file: h5py.File) -> str:
        if json.loads(file.attrs["identity"]) != dict(identity):
            return "its identity does not fit its name"
        if not 0 < int(file.attrs["count"]):
            return "it counts nothing"
        for name, shape in shapes.items():
            if file[name].shape != shape or file[name].dtype.kind not in "fi":
                return f"{name} is {file[name].dtype} {file[name].shape} in place of {shape}"
            if not _finite(file[name]):
                return f"{name} is not finite"
        return ""

    return _reading(path, look)


def _reading(path: Path, look: Callable[[h5py.File], str]) -> str:
    try:
        if not _is_whole(path):
            return "its checksum does not fit"
        with h5py.File(path, "r") as file:
            return look(file)
    except DAMAGE as error:
        return first_line(error)


def _finite(stored: h5py.Dataset) -> bool:
    """Read in blocks of rows of the last dimension but one, which may be large."""
    if stored.ndim < 2 or prod(stored.shape) * 8 <= stored_matrix.BLOCK_BYTES:
        return bool(np.isfinite(stored[()]).all())
    rows = max(1, stored_matrix.BLOCK_BYTES // (8 * stored.shape[-1]))
    places = np.ndindex(*stored.shape[:-2])
    starts = range(0, stored.shape[-2], rows)
    return all(bool(np.isfinite(stored[(*place, slice(s, s + rows))]).all()) for place in places for s in starts)


def _stem(name: str) -> str:
    """As much of a name as a file's can hold; the identity behind it has the rest."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:120]


def _digest(identity: Identity) -> str:
    text = json.dumps({"version": VERSION, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def fingerprint(network: fx.GraphModule) -> str:
    """SHA-256 of the network's graph and of all its tensors."""
    digest = hashlib.sha256(json.dumps(to_table(network), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
