"""Moments on disk: one HDF5 file an entry, trusted only for the same weights, data, layers and options."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from torch import Tensor, fx

from compresskit.data.dataset import Split
from compresskit.errors import CacheError, ResourceError
from compresskit.graph.table import to_table
from compresskit.numerics.matrix import Matrix
from compresskit.numerics.moments import Moments, MomentSums
from compresskit.passes.moments import Request, collect
from compresskit.storage.atomic import atomic_write
from compresskit.storage.run_folder import check_disk
from compresskit.training.distributed import Group

log = logging.getLogger("compresskit")

SAVE_EVERY = 60.0  # seconds of the pass over the data that an interruption may cost
BLOCK_BYTES = 64 * 2**20  # read from disk at a time


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
    """Takes the moments that are asked for from `folder`, or from one pass over the data, which it then keeps.

    stale: what to do with an entry of other weights, data, layers or options: `recompute` (the log says why) or `fail`.
    memory: bytes that the sums of one pass may take; requests are taken in groups that fit.
    """

    folder: Path
    stale: Literal["recompute", "fail"]
    memory: float
    batch_size: int
    device: torch.device
    group: Group

    def gather(
        self,
        network: fx.GraphModule,
        requests: Sequence[Request],
        split: Split,
        progress: Callable[[int], None] = lambda images: None,
        teacher: fx.GraphModule | None = None,
    ) -> dict[str, Moments]:
        """Moments by name of the request, over all of `split`; matrices stay on disk.

        teacher: the network that targets are read off, where it is another one.
        """
        identity = {
            "weights": fingerprint(network),
            "data": split.fingerprint,
            "batch_size": str(self.batch_size),
            "processes": str(self.group.world),
        } | ({"teacher": fingerprint(teacher)} if teacher is not None else {})
        missing = [request for request in requests if not self._is_kept(request, identity)]
        for batch in self._in_groups(missing, identity):
            self._take(network, teacher, batch, split, identity, progress)
        self.group.barrier()
        return {request.name: self._read(request) for request in requests}

    def _in_groups(self, requests: list[Request], identity: dict[str, str]) -> list[list[Request]]:
        """Requests that fit in memory together and, where a pass was interrupted, stopped at the same batch."""
        groups: dict[tuple[int, int], list[Request]] = {}
        filled: dict[int, tuple[int, int]] = {}
        for request in requests:
            if request.nbytes > self.memory:
                raise ResourceError(
                    f"the moments of {request.name} take {request.nbytes / 1e9:.1f} GB, {self.memory / 1e9:.1f} GB "
                    "are allowed; raise `moments.memory`, leave the layer out, or fuse into a smaller `kernel`"
                )
            start = self._batches_done(request, identity)
            index, used = filled.get(start, (0, 0))
            if used + request.nbytes > self.memory:
                index, used = index + 1, 0
            filled[start] = (index, used + request.nbytes)
            groups.setdefault((start, index), []).append(request)
        return list(groups.values())

    def _take(
        self,
        network: fx.GraphModule,
        teacher: fx.GraphModule | None,
        requests: list[Request],
        split: Split,
        identity: dict[str, str],
        progress: Callable[[int], None],
    ) -> None:
        needed = sum(request.nbytes for request in requests)
        log.info("moments of %d layers: %.1f MB of memory and disk", len(requests), needed / 1e6)
        check_disk(self.folder, 2 * needed)  # an unfinished part may still be there when the whole is written
        done = self._batches_done(requests[0], identity)
        sums = {request.name: self._resumed(request, done) for request in requests}
        saved = time.monotonic()

        def after_batch() -> None:
            nonlocal done, saved
            done += 1
            progress(min(done * self.batch_size, len(split)))
            if time.monotonic() - saved > SAVE_EVERY:
                for request in requests:
                    self._save_part(request, sums[request.name], done, identity)
                saved = time.monotonic()

        batches = split.batches(self.batch_size, self.device, rank=self.group.rank, world=self.group.world, start=done)
        collect(network, requests, batches, sums, teacher=teacher, after_batch=after_batch)
        for request in requests:
            total = sums.pop(request.name)
            self.group.sum_tensors(total.tensors().values())
            if self.group.is_main:
                self._save(request, total.finish(), identity)
            self._part(request).unlink(missing_ok=True)

    def _is_kept(self, request: Request, identity: dict[str, str]) -> bool:
        path = self._path(request)
        if not path.exists():
            return False
        try:
            with h5py.File(path) as file:
                found = json.loads(file.attrs["identity"])
        except (OSError, KeyError, ValueError) as error:
            return self._refuse(path, f"it cannot be read ({error})")
        expected = _identity(request, identity)  # neither may say more than the other: a teacher is there or not
        changed = sorted(key for key in expected | found if found.get(key) != expected.get(key))
        return not changed or self._refuse(path, f"it was made with other {', '.join(changed)}")

    def _refuse(self, path: Path, reason: str) -> Literal[False]:
        if self.stale == "fail":
            raise CacheError(
                f"{path}: {reason}; remove it, name another `moments.cache`, or set `moments.stale: recompute`"
            )
        log.warning("%s: %s, so the moments are computed again", path, reason)
        return False

    def _save(self, request: Request, moments: Moments, identity: dict[str, str]) -> None:
        assert isinstance(moments.cxx, Tensor)  # fresh from the sums
        with atomic_write(self._path(request)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["identity"] = json.dumps(_identity(request, identity))
            file.attrs["count"] = moments.count
            file["cxx"] = moments.cxx.cpu().numpy()
            file["diagonal"] = moments.cxx.diagonal(dim1=-2, dim2=-1).cpu().numpy()
            for name in ("mean_x", "mean_y", "cyx", "cyy"):
                file[name] = getattr(moments, name).cpu().numpy()

    def _read(self, request: Request) -> Moments:
        path = self._path(request)
        with h5py.File(path) as file:
            groups, features, _ = file["cxx"].shape
            small = {name: self._tensor(file[name]) for name in ("mean_x", "mean_y", "cyx", "cyy")}
            count = int(file.attrs["count"])
        matrices: list[Matrix] = [StoredMatrix(path, g, (features, features), self.device) for g in range(groups)]
        return Moments(count=count, cxx=matrices, **small)

    def _save_part(self, request: Request, sums: MomentSums, done: int, identity: dict[str, str]) -> None:
        with atomic_write(self._part(request)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["identity"] = json.dumps(_identity(request, identity))
            file.attrs["done"] = done
            for name, tensor in sums.tensors().items():
                file[name] = tensor.cpu().numpy()

    def _batches_done(self, request: Request, identity: dict[str, str]) -> int:
        try:
            with h5py.File(self._part(request)) as file:
                fits = json.loads(file.attrs["identity"]) == _identity(request, identity)
                return int(file.attrs["done"]) if fits else 0
        except (OSError, KeyError, ValueError):
            return 0

    def _resumed(self, request: Request, done: int) -> MomentSums:
        sums = request.zeros(self.device)
        if done:
            log.info("moments of %s go on behind batch %d", request.name, done)
            with h5py.File(self._part(request)) as file:
                for name, tensor in sums.tensors().items():
                    tensor.copy_(self._tensor(file[name]))
        return sums

    def _tensor(self, stored: h5py.Dataset) -> Tensor:
        return torch.from_numpy(np.asarray(stored)).to(self.device)

    def _path(self, request: Request) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', request.name)}.h5"

    def _part(self, request: Request) -> Path:
        return self._path(request).with_suffix(f".part{self.group.rank}")


def fingerprint(network: fx.GraphModule) -> str:
    """SHA-256 of the network's graph and of all its tensors."""
    digest = hashlib.sha256(json.dumps(to_table(network), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _identity(request: Request, identity: dict[str, str]) -> dict[str, str]:
    return identity | {"layers": json.dumps(asdict(request), sort_keys=True)}
