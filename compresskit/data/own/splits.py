"""Splits over data sets of the user's own: of samples that have numbers, and of those that come in a stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from compresskit.data.dataset import digest, generator, shares
from compresskit.data.files import Key, WorkerSplit
from compresskit.data.own.draws import Draws, apart, begin
from compresskit.data.own.form import Form
from compresskit.errors import DataError
from compresskit.user_code import said

KEPT = -1  # a label that is the sample's own
FIXED = 0  # seed of what a stream draws where no epoch has one


@dataclass(frozen=True)
class Numbered:
    """Samples of a map-style data set. where: key and name, for messages. index: (N,) which of them, in their order.

    labels: (N,), KEPT or another label in the place of the sample's own. identity: of the data set.
    """

    where: str
    dataset: Any
    form: Form
    workers: int
    index: Tensor
    labels: Tensor
    identity: str = ""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, positions: Tensor) -> "Numbered":
        return replace(self, index=self.index[positions], labels=self.labels[positions])

    def read(self, positions: list[int], seeds: list[int] | None = None) -> tuple[Any, Any]:
        """A batch; what the data set draws for a sample, its seed gives. Raises DataError for what it cannot be."""
        numbers = self.index[positions].tolist()
        seeds = numbers if seeds is None else seeds
        samples = []
        with apart():
            for number, seed in zip(numbers, seeds, strict=True):
                begin(seed)
                with named(f"{self.where}, sample {number}"):
                    samples.append(self.dataset[number])
            with named(f"{self.where}, sample {numbers[0]} and those with it"):
                inputs, targets = self.form.batch(samples)
        return inputs, _with_labels(targets, self.labels[positions])

    def looked_at(self, count: int) -> list[tuple[Any, Any]]:
        """Some samples, evenly spread, each as a batch of one."""
        places = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        return [self.read([place]) for place in places]

    def split(self) -> "NumberedSplit":
        return NumberedSplit(self)


class NumberedSplit(WorkerSplit):
    """Split of samples that can be read in any order."""

    def __init__(self, samples: Numbered) -> None:
        self._samples = samples
        identity = digest(samples.identity, samples.index, samples.labels)
        super().__init__(_Reader(samples), len(samples), ready, samples.workers, identity)

    def sample(self, count: int) -> "NumberedSplit":
        """See Split; what the data set itself does to its samples is done to these, too, the same each time."""
        chosen = torch.randperm(len(self), generator=generator("sample", 0))[:count]
        return NumberedSplit(self._samples.take(chosen.sort().values))


class _Reader(Dataset[Any]):
    """Reads whole batches; lives in the workers, and what it returns depends on the key alone."""

    def __init__(self, samples: Numbered) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples.index)

    def __getitem__(self, key: Key) -> tuple[Any, Any] | str:
        """Inputs and targets, or the message of a DataError, which would reach the main process with a traceback."""
        try:
            return self._samples.read(*key)
        except DataError as error:
            return str(error)


@dataclass(frozen=True)
class Stream:
    """The first samples of an iterable data set, in its own order. labels: (N,), as Numbered has them.

    whole: there are no more, which is checked.
    """

    where: str
    dataset: Any
    form: Form
    labels: Tensor
    whole: bool = True
    identity: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Stream":
        return replace(self, labels=self.labels[:count], whole=self.whole and count >= len(self))

    def looked_at(self, count: int) -> list[tuple[Any, Any]]:
        """The first samples, each as a batch of one."""
        with named(self.where):
            return [self.form.batch([sample]) for sample in Pass(self.where, self.dataset, FIXED).take(count)]

    def split(self) -> "StreamSplit":
        return StreamSplit(self)


class StreamSplit:
    """Split of samples that come one behind the other; every process goes through all of them."""

    in_memory = False

    def __init__(self, samples: Stream) -> None:
        self._samples = samples
        self.fingerprint = digest(samples.identity, samples.labels)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, count: int) -> "StreamSplit":
        """See Split; the first ones, since none can be asked for by its number."""
        return StreamSplit(self._samples.first(count))

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
        """See Split, but for the order, which is the data set's own: the seed is of what it draws itself.

        Raises DataError where the stream ends early, or goes on behind its end.
        """
        samples, where, done = self._samples, self._samples.where, 0
        stream = Pass(where, samples.dataset, FIXED if seed is None else seed)
        for share in shares(len(self), batch_size, rank, world, drop_last, start):
            stream.skip(share.start - done)  # those of other processes
            found, done = stream.take(share.stop - share.start), share.stop
            if len(found) < share.stop - share.start:
                raise DataError(f"{where}: it has {len(self)} samples, but ended before; it must give all each time")
            with named(f"{where}, samples {share.start} to {share.stop - 1}"), apart():
                begin(share.start)  # of numbers that the user's collate may draw
                inputs, targets = samples.form.batch(found)
            yield ready(inputs, device), _with_labels(targets, samples.labels[share]).to(device)
        if samples.whole and done == len(self) and stream.take(1):
            raise DataError(f"{where}: it has {len(self)} samples, but went on; its length must be right")


class Pass:
    """One pass over an iterable data set, whose draws are the seed's. Raises DataError for whatever it raises."""

    def __init__(self, where: str, dataset: Any, seed: int) -> None:
        self._where, self._draws = where, Draws(seed)
        with named(where), self._draws.used():
            self._stream = iter(dataset)

    def take(self, count: int) -> list[Any]:
        """The next samples, fewer at the end."""
        with named(self._where), self._draws.used():
            return list(islice(self._stream, count))

    def skip(self, count: int) -> None:
        with named(self._where), self._draws.used():
            next(islice(self._stream, count, count), None)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Around the user's code: what it raises becomes a DataError of one line that says where."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:
        raise DataError(f"{where}: it raised {said(error)}; mend the data set") from error


def ready(inputs: Any, device: torch.device) -> Any:
    """On the device; bytes become float32 from 0 to 1, all else is what the network gets."""
    if isinstance(inputs, tuple | list):
        return tuple(ready(one, device) for one in inputs)
    moved = inputs.to(device, non_blocking=True)
    return moved.float().div_(255) if moved.dtype == torch.uint8 else moved


def _with_labels(targets: Any, labels: Tensor) -> Any:
    plain = isinstance(targets, Tensor) and targets.ndim == 1
    return torch.where(labels != KEPT, labels, targets) if plain else targets
