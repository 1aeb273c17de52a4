"""What a factory of the user's returned: its parts by name, and what of a DataLoader is taken over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import default_collate as torchs_own

from compresskit.errors import DataError

ROLES = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation"}
ROLES |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Part:
    """A data set of torch's kind. collate: of its DataLoader, or None; workers: likewise, or 0."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0
    notes: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        """Whether its samples come one behind the other, and none can be asked for by its number."""
        return isinstance(self.dataset, IterableDataset) or not _has(self.dataset, "__getitem__", "__len__")


def parts_of(returned: Any, target: str) -> dict[str, Part]:
    """By "train", and perhaps "validation" and "test", in this order.

    Raises DataError for what is neither a data set nor a mapping or tuple of some.
    """
    if isinstance(returned, Mapping):
        unknown = [name for name in returned if name not in ROLES]
        if unknown or not any(ROLES[name] == "train" for name in returned):
            raise DataError(
                f"data.target: {target} returned a mapping of {', '.join(map(str, returned)) or 'nothing'}; give it "
                "the keys train, validation and test, of which train is needed"
            )
        named = {ROLES[name]: part for name, part in returned.items()}
    elif isinstance(returned, tuple):
        if len(returned) not in (2, 3):
            raise DataError(
                f"data.target: {target} returned a tuple of {len(returned)}; return (train, test) or "
                "(train, validation, test)"
            )
        roles = ("train", "test") if len(returned) == 2 else ("train", "validation", "test")
        named = dict(zip(roles, returned, strict=True))
    else:
        named = {"train": returned}
    return {role: _part(named[role], role, target) for role in ("train", "validation", "test") if role in named}


def _part(given: Any, role: str, target: str) -> Part:
    where = f"data.target: {target}, {role}"
    if isinstance(given, DataLoader):
        return _of_loader(given, where)
    once = _has(given, "__next__")
    if once or not (_has(given, "__getitem__", "__len__") or _has(given, "__iter__")) or isinstance(given, str):
        why = ", which can be gone through only once" if once else ""
        raise DataError(
            f"{where}: a {type(given).__name__}{why}; return a torch Dataset, IterableDataset or DataLoader, "
            "or a list of samples"
        )
    return Part(given)


def _of_loader(loader: Any, where: str) -> Part:
    """Its data set, collate_fn and workers: batches are of the recipe's size, and the order is the run's own."""
    if loader.batch_sampler is None:
        raise DataError(f"{where}: a DataLoader with batch_size=None; return a data set of single samples")
    own = None if loader.collate_fn is torchs_own else loader.collate_fn
    streams = isinstance(loader.dataset, IterableDataset)
    unusual = [type(loader.sampler)] if type(loader.sampler) not in (SequentialSampler, RandomSampler) else []
    unusual += [type(loader.batch_sampler)] if type(loader.batch_sampler) is not BatchSampler else []
    told = [
        f"{where}: the order of its {kind.__name__} is not kept; each epoch takes every sample once, in batches of the "
        "recipe's size"
        for kind in unusual
    ]
    return Part(loader.dataset, own, loader.num_workers, () if streams else tuple(told))


def _has(value: Any, *names: str) -> bool:
    return all(hasattr(value, name) for name in names)
