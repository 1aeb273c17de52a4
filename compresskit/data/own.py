"""Data sets of the user's own code: what a function returns, read sample by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from compresskit.code import find, said
from compresskit.data.dataset import AnySet, DataSet, digest, generator, partition
from compresskit.data.files import Key, ReadSplit
from compresskit.data.normalization import Normalization
from compresskit.errors import DataError, RecipeError
from compresskit.options import option

PARTS = ("train", "test", "validation")
_LOOKED_AT = 16  # samples of a part that its fingerprint is made of, beside its length


@option
class OwnData(AnySet):
    """What a function of yours returns: `kind: package.module:function` for short.

    It gives the parts, as a mapping with train, test and perhaps validation, or as (train, test): data sets with a
    length whose samples are pairs (input, target), or mappings; or loaders of such. Inputs are images of PIL, arrays or
    tensors, ready for the network but for bytes, which are divided by 255. Targets are class numbers, or real values.
    """

    kind: Literal["own"] = "own"
    target: str  # "package.module:function", looked for in the current directory too
    arguments: dict[str, Any] = field(default_factory=dict)
    inputs: str = "inputs"  # name of the input in samples that are mappings
    targets: str = "targets"  # name of the target in them
    outputs: Annotated[int, Ge(1)] | None = None  # of the network; default: as many as the part's `classes`, or values
    collate: str | None = None  # "package.module:function" that makes a batch of a list of (input, target)
    workers: Annotated[int, Ge(0)] = 0  # processes that read samples, for each part; 0 reads in the main process

    def load(self, seed: int) -> DataSet:
        """Raises RecipeError for code that cannot be found or run, and DataError for what it returns."""
        if self.label_noise:
            raise DataError("data.label_noise: labels of your own data set are its own business; leave it out")
        parts = self._parts()
        collate = default_collate if self.collate is None else find(self.collate, "data.collate", "batches")
        readers = {name: _Reader(name, part, self, collate) for name, part in parts.items()}
        inputs, targets = readers["train"].batch([0], None)
        regression = targets.is_floating_point()
        outputs = self.outputs or (targets.shape[1] if regression and targets.ndim > 1 else _classes(parts["train"]))
        if outputs is None:
            raise DataError(f"data.outputs: {self.target} does not say how many classes there are; give the number")
        kept, held = partition(len(parts["train"]), self)
        if len(held) and "validation" in parts:
            raise DataError("data.validation: the data set has a validation part of its own; leave validation out")
        channels = inputs.shape[1] if inputs.ndim > 1 else 1
        normalization = Normalization((0.0,) * channels, (1.0,) * channels)
        identity = (self.target, sorted(self.arguments.items()), self.collate)
        splits = {
            name: OwnSplit(reader, None, normalization, self.workers, identity) for name, reader in readers.items()
        }
        train = OwnSplit(readers["train"], kept, normalization, self.workers, identity)
        validation = splits.get("validation")
        if len(held):
            validation = OwnSplit(readers["train"], held, normalization, self.workers, identity)
        every = (train, validation, splits["test"])
        return DataSet(
            *every,
            task="regression" if regression else "classification",
            outputs=outputs,
            input_shape=tuple(inputs.shape[1:]),
            mean=normalization.mean,
            std=normalization.std,
            fingerprint=digest(*(one and one.fingerprint for one in every)),
            notes=(
                f"data: {self.target} is known by its name, its arguments, lengths and {_LOOKED_AT} samples of a part",
            ),
        )

    def _parts(self) -> dict[str, Any]:
        factory = find(self.target, "data.target", "data")
        try:
            found = factory(**self.arguments)
        except (Exception, SystemExit) as error:  # it is the user's code
            raise RecipeError(f"data.target: {self.target} raised {said(error)}") from error
        if isinstance(found, Sequence) and not isinstance(found, Mapping) and len(found) in (2, 3):
            found = dict(zip(PARTS, found if len(found) == 2 else (found[0], found[2], found[1]), strict=False))
        if not isinstance(found, Mapping) or not {"train", "test"} <= found.keys() <= set(PARTS):
            told = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise DataError(
                f"data.target: {self.target} returned {told}; it must return a mapping with train, test and perhaps "
                "validation, or (train, test), or (train, validation, test)"
            )
        return {name: _mapped(name, part, self.target) for name, part in found.items()}


class OwnSplit(ReadSplit):
    """Samples of a data set with a length, those of some positions."""

    def __init__(
        self, reader: "_Reader", index: Tensor | None, normalization: Normalization, workers: int, identity: Any
    ) -> None:
        self._whole, self._index, self._identity = reader, index, identity
        chosen = torch.arange(len(reader)) if index is None else index
        step = max(1, len(chosen) // _LOOKED_AT)
        places = chosen[::step].tolist()[:_LOOKED_AT]
        looked_at = [tensor for place in places for tensor in reader.batch([place], [0])]
        super().__init__(
            _Chosen(reader, chosen), len(chosen), normalization, workers, digest(*identity, chosen, *looked_at)
        )

    def sample(self, count: int) -> "OwnSplit":
        """See Split; draws within the data set (augmentation) are those of the stored order."""
        places = torch.randperm(len(self), generator=generator("sample", 0))[:count].sort().values
        chosen = places if self._index is None else self._index[places]
        return OwnSplit(self._whole, chosen, self._normalization, self._workers, self._identity)


class _Reader:
    """Batches of a data set; each sample's draws come from a seed of its own."""

    def __init__(self, name: str, part: Any, options: OwnData, collate: Any) -> None:
        self._name, self._part, self._options, self._collate = name, part, options, collate

    def __len__(self) -> int:
        return len(self._part)

    def batch(self, places: Sequence[int], seeds: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """Inputs (N, ...), uint8 or float32 or int64, and targets int64 (N,) or float32 (N, outputs).

        seeds: None draws by the place alone, the same each time. Raises DataError, with the place, for a sample that
        cannot be read or is no such pair.
        """
        pairs = [
            self._pair(at, at if seeds is None else seed) for at, seed in zip(places, seeds or places, strict=True)
        ]
        try:
            inputs, targets = self._collate(pairs)
        except Exception as error:  # it may be the user's code
            raise DataError(
                f"data: the {self._name} samples at {list(places)[:3]} make no batch: {said(error)}"
            ) from error
        return _number(inputs), _target(targets)

    def _pair(self, place: int, seed: int) -> tuple[Any, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                sample = self._part[place]
                if isinstance(sample, Mapping):
                    return _tensor(sample[self._options.inputs]), sample[self._options.targets]
                value, target = sample
            except Exception as error:  # it is the user's code
                raise DataError(f"data: the {self._name} sample at {place}: {said(error)}") from error
        return _tensor(value), target


class _Chosen(Dataset[Any]):
    """What a `ReadSplit` reads: positions among those chosen."""

    def __init__(self, reader: _Reader, chosen: Tensor) -> None:
        self._reader, self._chosen = reader, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        places, seeds = key
        try:
            return self._reader.batch(self._chosen[places].tolist(), seeds)
        except DataError as error:  # raised here, it would come with the worker's traceback
            return str(error)


def _mapped(name: str, part: Any, target: str) -> Any:
    """The data set of a loader, and what has a length and positions."""
    part = part.dataset if isinstance(part, DataLoader) else part
    if isinstance(part, IterableDataset) or not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
        raise DataError(
            f"data.target: the {name} part of {target} is a {type(part).__name__}, which has no length and no "
            "positions: no run could be repeated or resumed; give one with __len__ and __getitem__, a list will do"
        )
    if not len(part):
        raise DataError(f"data.target: the {name} part of {target} is empty; give at least one sample")
    return part


def _classes(part: Any) -> int | None:
    while part is not None:
        if isinstance(getattr(part, "classes", None), Sequence):
            return len(part.classes)
        part = getattr(part, "dataset", None)  # of a Subset
    return None


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if not isinstance(value, np.ndarray) and array.ndim in (2, 3) and array.dtype == np.uint8:  # an image of PIL
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array))


def _number(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return (
        tensor.float()
        if tensor.is_floating_point() or tensor.dtype is torch.bool
        else (tensor if tensor.dtype is torch.uint8 else tensor.long())
    )


def _target(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point():
        return tensor.long()
    return tensor.float() if tensor.ndim > 1 else tensor.float()[:, None]
