"""What every data set offers (splits that serve batches) and the options that any set shares."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from compresskit.errors import DataError
from compresskit.options import option
from compresskit.shapes import Shape


class Split(Protocol):
    """A part of a data set that serves batches; `fingerprint` changes when what it serves changes."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def in_memory(self) -> bool:
        """Whether all samples are at hand, and none is read when it is served."""
        ...

    def __len__(self) -> int: ...

    def sample(self, count: int) -> "Split":
        """A fixed random subset of `count` samples, without augmentation; all of them where there are no more."""
        ...

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
        """Normalised float32 inputs with int64 (N,) or float32 (N, outputs) targets, both on `device`.

        Targets of any structure are `Targets`, of the length N. Of several inputs a tuple; inputs that are tokens are
        int64 as they are stored.

        seed: None serves the stored order without augmentation; a number shuffles and augments by it, each sample with
        its own draw, the same whatever `world`, `start` and `batch_size` are. Augmentation may give V views of all
        samples, one behind the other: (V N, ...) inputs for N targets.
        batch_size: of the global batch, of which this `rank` of `world` gets a contiguous share; a share without
        samples (only in a last batch smaller than `world`) is left out.
        start: batches to skip.
        """
        ...


@dataclass(frozen=True)
class DataSet:
    """Splits with what a model and a checkpoint need to know of them.

    mean, std: per channel, of the inputs as they are, except that uint8 inputs are divided by 255 first; of several
    inputs one behind the other, and tokens have none.
    tokens: for each input whether it is whole numbers (int64), as networks look them up.
    scaled: for each input whether batches hold other numbers than are stored: divided by 255, or normalised.
    of_bytes: for each input whether it is stored as uint8, of which batches hold 255ths.
    classes: names of the classes in the order of their numbers, where the data tell them.
    notes: what looks odd in the data, one line each; for the user's eyes, and for the report.
    """

    train: Split
    validation: Split | None
    test: Split
    task: str  # "classification", "regression", "segmentation", "detection" or "own"
    outputs: int  # along dimension 1 of what the network returns; 0: it may return anything
    input_shape: Shape  # of one sample: a tuple of sizes; of several inputs, which batches give as a tuple, one of each
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    anchors: tuple[tuple[float, float], ...] = ()  # widths and heights as fractions of the image's; for detection
    tokens: tuple[bool, ...] = (False,)
    scaled: tuple[bool, ...] = (False,)
    of_bytes: tuple[bool, ...] = (False,)
    classes: tuple[str, ...] = ()
    consistency: float = 0.0  # weight in the loss; above 0 shuffled training batches hold three views of each sample
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A choice of data set that a recipe can name."""

    @property
    def kind(self) -> str: ...

    @property
    def channels_last(self) -> bool: ...

    def load(self, seed: int) -> DataSet: ...


@option
class AnySet:
    """Options of any data set."""

    kind: str
    validation: Annotated[int, Ge(0)] = 0  # training samples held out, drawn by split_seed
    split_seed: Annotated[int, Ge(0)] = 0  # fixes the splits and the limited subset, whatever the run's seed is
    # Fraction of the training labels, drawn by the run's seed, that are replaced by a label drawn uniformly from all
    # classes, the true one included (Zhang et al. 2017, as ExpandNets does); validation and test stay clean
    label_noise: Annotated[float, Ge(0), Lt(1)] = 0.0
    limit: Annotated[int, Ge(1)] | None = None  # train on a fixed random subset of so many samples, for smoke runs
    channels_last: bool = False  # layout of batches in memory, in all verbs: quicker for most convolutions


def partition(count: int, options: AnySet) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation samples among `count`, each in stored order.

    Both come from one permutation, so the validation samples do not depend on `limit`, and a smaller `limit` takes a
    subset of a larger one.  Raises DataError when fewer than `validation` + 1, or than `validation` + `limit`, exist.
    """
    wanted = options.limit or 1
    if options.validation + wanted > count:
        raise DataError(
            f"data: the training part holds {count} samples, too few for validation: {options.validation} and "
            f"{wanted} for training; lower data.validation or data.limit"
        )
    order = torch.randperm(count, generator=generator("split", options.split_seed))
    held, kept = order[: options.validation], order[options.validation :][: options.limit]
    return kept.sort().values, held.sort().values


def corrupt(labels: Tensor, fraction: float, classes: int, seed: int) -> Tensor:
    """Labels of which round(fraction * N) are replaced by draws from all `classes`; see AnySet.label_noise.

    Source: Zhang et al. 2017, partially corrupted labels; they replace each label with that probability, we an exact
    number of them.
    """
    draws = generator("label noise", seed)
    chosen = torch.randperm(len(labels), generator=draws)[: round(fraction * len(labels))]
    return labels.index_copy(0, chosen, torch.randint(classes, chosen.shape, generator=draws))


def shares(count: int, batch_size: int, rank: int, world: int, drop_last: bool, start: int) -> Iterator[slice]:
    """This rank's slice of each global batch of the positions 0 .. count - 1, from batch `start` on."""
    end = count - count % batch_size if drop_last else count
    for begin in range(start * batch_size, end, batch_size):
        size = min(batch_size, end - begin)
        share = slice(begin + size * rank // world, begin + size * (rank + 1) // world)
        if share.start < share.stop:
            yield share


def generator(purpose: str, seed: int) -> torch.Generator:
    """Random numbers that are unrelated between purposes: equal seeds must not make the noisy labels come first."""
    digest_bytes = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest_bytes[:4]))


def digest(*parts: object) -> str:
    """SHA-256, in hex, of tensors by type, shape and bytes and of anything else by its repr."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {tuple(part.shape)}".encode())
            sha.update(part.contiguous().numpy().data)
        else:
            sha.update(repr(part).encode() + b"\n")
    return sha.hexdigest()
