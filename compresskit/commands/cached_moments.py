"""Moments of activations: what a cache holds of them, and one pass over the data for the rest."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import fx

from compresskit.commands.result import counted
from compresskit.data.dataset import Split
from compresskit.distributed import Group
from compresskit.errors import ResourceError
from compresskit.numerics.moments.moments import Moments, MomentSums
from compresskit.passes.moments import Request, collect, in_passes
from compresskit.storage.moment_cache import Identity, MomentCache, fingerprint
from compresskit.storage.run_folder import check_disk

log = logging.getLogger("compresskit")

WAIT = 30.0  # seconds at a time: processes of one run that wait for each other are given up after some minutes
SAVE_EVERY = 60.0  # seconds of the pass over the data that an interruption may cost


@dataclass(frozen=True)
class CachedMoments:
    """Takes the moments that are asked for from `cache`, or from a pass over the data, which it then keeps.

    memory: bytes that the sums of one pass may take; requests are taken in groups that fit.
    """

    cache: MomentCache
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
        start: Callable[[int], None] = lambda images: None,
    ) -> dict[str, Moments]:
        """Moments by name of the request, over all of `split`; matrices stay on disk.

        teacher: the network that targets are read off, where it is another one. start: is told how many images all
        passes together take, before the first. progress: how many they have taken, behind each batch.
        """
        common = {
            "weights": fingerprint(network),
            "data": split.fingerprint,
            "batch_size": str(self.batch_size),
            "processes": str(self.group.world),
        } | ({"teacher": fingerprint(teacher)} if teacher is not None else {})
        entries = [_Entry(request, common) for request in requests]
        if self._missing(entries):
            with self._alone(common):  # another run may have computed them while this one waited
                groups = self._in_groups(self._missing(entries))
                start(len(groups) * len(split))
                for number, (done, together) in enumerate(groups):
                    told = partial(_behind, number * len(split), progress)
                    self._take(network, teacher, together, done, split, told)
        return {entry.name: self.cache.read(entry.name, entry.identity) for entry in entries}

    def _missing(self, entries: list["_Entry"]) -> list["_Entry"]:
        """As the main process sees them."""
        held = self.group.in_main(
            lambda: [self.cache.holds(entry.name, entry.identity, entry.request.shapes) for entry in entries]
        )
        return [entry for entry, there in zip(entries, held, strict=True) if not there]

    @contextmanager
    def _alone(self, common: Identity) -> Iterator[None]:
        """Lets one run at a time compute moments of the same network and data; the others wait, and take them over."""
        lock = self.cache.lock(common) if self.group.is_main else None
        if not self.group.in_main(lambda: lock is None or lock.acquire()):
            if lock is not None:
                log.info("%s: waiting for moments of %s", self.cache.folder, lock.owner() or "another run")
            while not self.group.in_main(lambda: lock is None or lock.acquire(WAIT)):
                pass
        try:
            yield
            self.group.barrier()
        finally:
            if lock is not None:
                lock.release()

    def _in_groups(self, entries: list["_Entry"]) -> list[tuple[int, list["_Entry"]]]:
        """Those that fit in memory together and were stopped behind the same batch, in every process; with the batches
        that are done in this one."""
        done = self.group.gather([[self._batches_done(entry) for entry in entries]])
        alike: dict[tuple[int, ...], list[_Entry]] = {}
        for entry, starts in zip(entries, zip(*done, strict=True), strict=True):
            nbytes = entry.request.nbytes
            if nbytes > self.memory:
                raise ResourceError(
                    f"the moments of {entry.name} take {nbytes / 1e6:,.1f} MB, {self.memory / 1e6:,.1f} MB "
                    "are allowed; raise `moments.memory`, leave the layer out, or fuse into a smaller `kernel`"
                )
            alike.setdefault(starts, []).append(entry)
        return [
            (starts[self.group.rank], together)
            for starts, stopped in alike.items()
            for together in in_passes(stopped, lambda entry: entry.request.nbytes, self.memory)
        ]

    def _take(
        self,
        network: fx.GraphModule,
        teacher: fx.GraphModule | None,
        entries: list["_Entry"],
        done: int,
        split: Split,
        progress: Callable[[int], None],
    ) -> None:
        """One pass over the data from behind its first `done` batches."""
        needed = sum(entry.request.nbytes for entry in entries)
        log.info("moments of %s: %.1f MB of memory and disk", counted(len(entries), "layer"), needed / 1e6)
        check_disk(self.cache.folder, 2 * needed)  # an unfinished part may still be there when the whole is written
        rank = self.group.rank
        sums = {entry.name: self._resumed(entry, done) for entry in entries}
        saved = time.monotonic()

        def after_batch() -> None:
            nonlocal done, saved
            done += 1
            progress(min(done * self.batch_size, len(split)))
            if time.monotonic() - saved > SAVE_EVERY:
                for entry in entries:
                    self.cache.write_part(entry.name, rank, entry.identity, done, sums[entry.name].tensors())
                saved = time.monotonic()

        batches = split.batches(self.batch_size, self.device, rank=rank, world=self.group.world, start=done)
        requests = [entry.request for entry in entries]
        collect(network, requests, batches, sums, teacher=teacher, after_batch=after_batch)
        for entry in entries:
            total = sums.pop(entry.name)
            self.group.sum_tensors(total.tensors().values())
            if self.group.is_main:
                self.cache.write(entry.name, entry.identity, total.finish())
            self.cache.drop_part(entry.name, rank, entry.identity)

    def _batches_done(self, entry: "_Entry") -> int:
        shapes = {name: tuple(tensor.shape) for name, tensor in entry.request.zeros("meta").tensors().items()}
        return self.cache.batches_done(entry.name, self.group.rank, entry.identity, shapes)

    def _resumed(self, entry: "_Entry", done: int) -> MomentSums:
        sums = entry.request.zeros(self.device)
        if done:
            log.info("moments of %s go on behind batch %d", entry.name, done)
            self.cache.read_part(entry.name, self.group.rank, entry.identity, sums.tensors())
        return sums


def _behind(before: int, progress: Callable[[int], None], images: int) -> None:
    """Tells so many images more than earlier passes took."""
    progress(before + images)


@dataclass(frozen=True)
class _Entry:
    """A request as the cache knows it. common: what its identity shares with the other requests'."""

    request: Request
    common: Identity

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def identity(self) -> Identity:
        return {**self.common, "layers": json.dumps(asdict(self.request), sort_keys=True)}
