"""Splits that worker processes read, batch by batch, normalised on the device; and those whose samples are files."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from compresskit.data.dataset import digest, generator, shares
from compresskit.data.reading.images import decode
from compresskit.data.reading.regular import regular
from compresskit.data.stored.normalization import Normalization
from compresskit.errors import DataError

Key = tuple[list[int], list[int] | None]  # samples of a batch, and the seeds of their augmentation
# (PIL image, target) -> uint8 (C, H, W) and the target's tensor, each of one shape for all samples; its str is part of
# the split's fingerprint
Transform = Callable[..., tuple[Tensor, Tensor]]


class Samples(Protocol):
    """The files of a part, with their targets."""

    @property
    def paths(self) -> list[str]:
        """The images."""
        ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Self:
        """The samples of these positions, in this order."""
        ...

    def target(self, index: int) -> Any:
        """Of one sample, as the transforms take it.  Raises DataError for a file that cannot be read."""
        ...

    def identity(self) -> tuple[object, ...]:
        """What the fingerprint is made from: names and sizes of the files, and the targets."""
        ...


class WorkerSplit:
    """Split whose batches `reader` makes of their keys; one loop over it at a time, since the workers are kept.

    reader: from a key to inputs and targets (N, ...), or the message of a DataError. ready: (inputs, device) -> what
    the network gets of them, there.
    """

    in_memory = False

    def __init__(
        self, reader: Dataset[Any], count: int, ready: Callable[[Any, torch.device], Any], workers: int, identity: str
    ) -> None:
        self._reader, self._count, self._ready = reader, count, ready
        self._workers = workers
        self._schedule = _Schedule()
        self._loader: DataLoader[Any] | None = None
        self.fingerprint = identity

    def __len__(self) -> int:
        return self._count

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[tuple[Any, Any]]:
        """See Split.  Raises DataError for what cannot be read, RuntimeError if a second loop has begun."""
        keys = self._keys(seed, shares(len(self), batch_size, rank, world, drop_last, start))
        self._schedule.keys = keys
        for batch in self._kept_loader(device):
            if self._schedule.keys is not keys:
                raise RuntimeError("a second loop over these samples began before the first was done")
            if isinstance(batch, str):
                raise DataError(batch)
            inputs, targets = batch
            yield self._ready(inputs, device), targets.to(device, non_blocking=True)

    def _keys(self, seed: int | None, positions: Iterable[slice]) -> Iterator[Key]:
        """For each batch the samples to read and the seed of each one's augmentation, none for the stored order."""
        if seed is None:
            return ((list(range(share.start, share.stop)), None) for share in positions)
        random = generator("epoch", seed)
        order = torch.randperm(len(self), generator=random)
        seeds = torch.randint(2**32, (len(self),), generator=random)
        return ((order[share].tolist(), seeds[share].tolist()) for share in positions)

    def _kept_loader(self, device: torch.device) -> DataLoader[Any]:
        if self._loader is None:
            self._loader = DataLoader(
                self._reader,
                batch_size=None,  # the schedule names whole batches and the reader stacks them
                sampler=self._schedule,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                pin_memory=device.type == "cuda",
                collate_fn=_as_read,
                generator=torch.Generator(),  # else each loop would draw a seed from torch's global generator
            )
            # It outlives its split. Found together in a cycle, its queues would be closed before it can tell the
            # workers to end, and it would wait five seconds for each.
            weakref.finalize(self, _let_go, self._loader).atexit = False
        return self._loader


class FileSplit(WorkerSplit):
    """Split whose samples are files."""

    def __init__(
        self, samples: Samples, normalization: Normalization, workers: int, plain: Transform, augmented: Transform
    ) -> None:
        self._samples, self._plain, self._normalization = samples, plain, normalization
        identity = digest(*samples.identity(), str(plain), str(augmented), normalization)
        super().__init__(_Reader(samples, plain, augmented), len(samples), self._normalised, workers, identity)

    def sample(self, count: int) -> "FileSplit":
        """See Split; the stored order is random already."""
        samples = self._samples.take(torch.arange(min(count, len(self))))
        return FileSplit(samples, self._normalization, self._workers, self._plain, self._plain)

    def _normalised(self, images: Tensor, device: torch.device) -> Tensor:
        images = images.to(device, non_blocking=True)
        return self._normalization.on(device, images)(images)


class _Schedule(Sampler[Key]):
    """Hands the loader the keys of the epoch at hand, so that one set of workers serves them all."""

    keys: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[Key]:
        return self.keys


class _Reader(Dataset[Any]):
    """Decodes and transforms a batch; lives in the workers, and what it returns depends on the key alone."""

    def __init__(self, samples: Samples, plain: Transform, augmented: Transform) -> None:
        self._samples = samples
        self._plain = plain
        self._augmented = augmented

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        """Images (N, C, H, W) uint8 and targets (N, ...), or the message of a DataError.

        Raised here, it would reach the main process with the worker's traceback in its message.
        """
        indices, seeds = key
        try:
            if seeds is None:
                pairs = [self._plain(*self._decoded(index)) for index in indices]
            else:
                pairs = [self._drawn(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        except DataError as error:
            return str(error)
        images, targets = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(targets)

    def _decoded(self, index: int) -> tuple[Any, Any]:
        return decode(self._samples.paths[index]), self._samples.target(index)

    def _drawn(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's global generator
            torch.default_generator.manual_seed(seed)
            return self._augmented(*self._decoded(index))


def sizes(folder: Path, paths: Iterable[str]) -> list[tuple[str, int]]:
    """Each file's name below `folder` and its bytes, for a fingerprint.  Raises DataError for one that is no file."""
    return [(Path(path).relative_to(folder).as_posix(), regular(path)) for path in paths]


def _let_go(loader: DataLoader[Any]) -> None:
    """Drops the last reference to it."""


def _as_read(batch: Any) -> Any:
    """In place of torch's conversion, which knows tensors and numbers but not errors."""
    return batch
