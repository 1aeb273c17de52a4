"""Sets of the user's own arrays, in one HDF5 or NPZ file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Len, Lt
from numpy.typing import NDArray
from torch import Tensor

from compresskit.data.dataset import DataSet, generator
from compresskit.data.memory import Examples, InMemory, assemble
from compresskit.data.reading.arrays import Reader, opened
from compresskit.data.reading.numbers import check_channels, finite, numbers, plain, whole
from compresskit.data.reading.regular import at_home
from compresskit.data.stored.oddities import are_whole, count_classes, is_one_hot, shortened
from compresskit.errors import DataError
from compresskit.options import option


@option
class Arrays(InMemory):
    """Inputs (N, channels, ...) and targets from one HDF5 or NPZ file, for classification or regression.

    The arrays lie in groups (`train/inputs`, or in an NPZ file also `train_inputs`), or without groups are split by
    test_fraction. Images are (N, channels, height, width). Targets are (N,) class numbers from 0, or names of classes,
    or (N,) or (N, outputs) real values; (N,) truth values are two classes, (N, outputs) of them the values 0 and 1.
    uint8 inputs stay so and are divided by 255 on their way to the model; float16 and truth values become float32 on
    it, all other inputs when they are read. `tokens` are whole numbers of any type, and int64 when the model gets them.
    Of several inputs the model gets a tuple, each normalised by itself; `augment` changes the one that is of images.
    """

    kind: Literal["arrays"] = "arrays"
    path: str  # the file; `~` is the home folder
    inputs: str | Annotated[tuple[str, ...], Len(2, 8)] = "inputs"  # name of the array of inputs, or of each of several
    targets: str = "targets"  # name of the array of targets
    # Inputs that are whole numbers, for an embedding to look up, and stay as they are stored: true, or which of several
    tokens: bool | tuple[str, ...] = False
    train: str = "train"  # name of the group to train on
    test: str = "test"  # name of the group to test on
    validation_group: str | None = None  # name of the group to validate on, in place of `validation`
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2  # without groups: the part held out, drawn by split_seed
    task: Literal["auto", "classification", "regression"] = "auto"  # auto: classification if the targets are integers
    classes: Annotated[int, Ge(2)] | None = None  # number of classes; default: the largest target + 1
    add_channel: bool = False  # give inputs stored as (N, height, width) their channel axis

    def __post_init__(self) -> None:
        if self.validation and self.validation_group is not None:
            raise ValueError("validation and validation_group exclude each other; keep one")
        if self.task == "regression" and self.classes is not None:
            raise ValueError("classes: a regression has none; leave classes out, or set task: classification")
        if self.add_channel and all(self.are_tokens):
            raise ValueError("add_channel: tokens have no channels; leave one of them out")
        if isinstance(self.tokens, tuple) and (unknown := set(self.tokens) - set(self.names)):
            raise ValueError(f"tokens: no input is named {shortened(unknown)}; inputs are {shortened(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all inputs."""
        return (self.inputs,) if isinstance(self.inputs, str) else self.inputs

    @property
    def are_tokens(self) -> tuple[bool, ...]:
        """For each input."""
        return tuple(self.tokens if isinstance(self.tokens, bool) else name in self.tokens for name in self.names)

    def load(self, seed: int) -> DataSet:
        """The set read from `path`.

        Raises DataError for a missing or damaged file, a name that it does not hold, an empty array, lengths or shapes
        that disagree, NaN or infinite values, and inputs or targets that are not what the task needs.
        """
        read = _read(self)
        task, stored, notes = _task(read, self)
        for name, inputs, token in zip(self.names, stored["train"].inputs, self.are_tokens, strict=True):
            notes += [] if token else check_channels(f"{self.path} {name}", inputs)
        parts = {role: _checked(pair, task, self) for role, pair in stored.items()}
        outputs = _outputs(parts, task, self)
        if "test" not in parts:
            parts["train"], parts["test"] = _divided(parts["train"], self)
        return assemble(
            self,
            parts["train"],
            parts["test"],
            parts.get("validation"),
            task=task,
            outputs=outputs,
            seed=seed,
            tokens=self.are_tokens,
            stated=self.classes is not None,
            classes=_class_names(read),
            notes=notes,
        )


class _Stored(NamedTuple):
    """Inputs, one or several, and targets as the file holds them; `where` names the file and the group."""

    where: str
    inputs: tuple[NDArray[Any], ...]
    targets: NDArray[Any]


def _read(options: Arrays) -> dict[str, _Stored]:
    """The pairs under "train", "test" and perhaps "validation"; only under "train" when the file has no groups."""
    path = at_home(options.path)
    groups = {"train": options.train, "test": options.test, "validation": options.validation_group}
    named = {role: group for role, group in groups.items() if group is not None}
    with opened(path) as arrays:
        grouped = any(_names(group, name) & arrays.keys() for group in named.values() for name in options.names)
        if not grouped and options.validation_group is None:
            return {"train": _pair(path, arrays, None, options)}
        return {role: _pair(path, arrays, group, options) for role, group in named.items()}


def _pair(path: Path, arrays: Mapping[str, Reader], group: str | None, options: Arrays) -> _Stored:
    where = f"{path}: {group}" if group else str(path)
    found = []
    for name in (*options.names, options.targets):
        names = _names(group, name)
        if not names & arrays.keys():
            raise DataError(
                f"{path}: holds no array {' or '.join(sorted(names))}, only {shortened(set(arrays)) or 'nothing'}; "
                "set data.inputs and data.targets to the names of the arrays, data.train and data.test to their groups"
            )
        array = arrays[min(names & arrays.keys())]()
        found.append(plain(f"{where} {name}", array, names=name == options.targets))
    return _Stored(where, tuple(found[:-1]), found[-1])


def _names(group: str | None, name: str) -> set[str]:
    return {name} if group is None else {f"{group}/{name}", f"{group}_{name}"}


def _task(stored: dict[str, _Stored], options: Arrays) -> tuple[str, dict[str, _Stored], list[str]]:
    """The task, and the arrays with class numbers in the place of one-hot rows, with a note on what was concluded."""
    targets = [pair.targets for pair in stored.values()]
    where = f"{options.path} {options.targets}"
    kind = targets[0].dtype.kind
    if any(array.dtype.kind == "U" for array in targets):
        return "classification", *_numbered(stored, where, options)
    if options.task != "regression" and all(map(is_one_hot, targets)):
        numbers = {role: pair._replace(targets=pair.targets.argmax(1)) for role, pair in stored.items()}
        note = f"{where}: one-hot rows, read as class numbers; set data.task: regression to fit the rows themselves"
        return "classification", numbers, [note]
    if options.task != "auto":
        return options.task, stored, []
    if kind == "b":
        return "classification" if targets[0].size == len(targets[0]) else "regression", stored, []
    if kind in "iu":
        return "classification", stored, []
    if options.classes is not None:
        raise DataError(
            f"{where}: real numbers, but data.classes is {options.classes}; set data.task: classification if they are "
            "classes, or leave data.classes out"
        )
    odd = all(map(are_whole, targets))
    note = f"{where}: real numbers that are all whole, read as values to fit; for classes set data.task: classification"
    return "regression", stored, [note] if odd else []


def _numbered(stored: dict[str, _Stored], where: str, options: Arrays) -> tuple[dict[str, _Stored], list[str]]:
    """The arrays with numbers in the place of the names of classes, which are sorted, and a note that tells them."""
    if options.task == "regression" or any(pair.targets.dtype.kind != "U" for pair in stored.values()):
        raise DataError(f"{where}: texts, which name classes, in all groups; leave data.task out, or store numbers")
    names = _class_names(stored)
    numbers = {role: pair._replace(targets=np.searchsorted(names, pair.targets)) for role, pair in stored.items()}
    told = ", ".join(f"{number} {name}" for number, name in enumerate(names[:10])) + (
        ", ..." if len(names) > 10 else ""
    )
    return numbers, [f"{where}: names of {len(names)} classes, numbered in their order: {told}"]


def _class_names(stored: dict[str, _Stored]) -> list[str]:
    """In their order, where targets are texts."""
    targets = [pair.targets.ravel() for pair in stored.values()]
    if any(array.dtype.kind != "U" for array in targets):
        return []
    return [str(name) for name in np.unique(np.concatenate(targets))]


def _checked(stored: _Stored, task: str, options: Arrays) -> Examples:
    """The inputs and targets as tensors of the types that MemorySplit serves."""
    each = [
        _input(stored, name, inputs, options, token=token)
        for name, inputs, token in zip(options.names, stored.inputs, options.are_tokens, strict=True)
    ]
    convert = _labels if task == "classification" else _values
    targets = torch.from_numpy(convert(stored, options))
    return Examples(each[0] if isinstance(options.inputs, str) else tuple(each), targets)


def _input(stored: _Stored, name: str, inputs: NDArray[Any], options: Arrays, *, token: bool) -> Tensor:
    """One of the inputs. Raises DataError where it does not fit the targets."""
    where, targets = stored.where, stored.targets
    if options.add_channel and not token and (isinstance(options.inputs, str) or inputs.ndim == 3):
        inputs = np.expand_dims(inputs, 1)
    if inputs.ndim < 2 or targets.ndim < 1 or inputs.shape[0] != targets.shape[0]:
        raise DataError(
            f"{where}: {name} of shape {inputs.shape} and {options.targets} of shape {targets.shape} do not "
            "fit; give inputs (N, channels, ...) and N targets"
        )
    return torch.from_numpy(np.ascontiguousarray((whole if token else numbers)(f"{where} {name}", inputs)))


def _labels(stored: _Stored, options: Arrays) -> NDArray[np.int64]:
    where, targets = f"{stored.where} {options.targets}", stored.targets
    if targets.size != len(targets):
        raise DataError(
            f"{where}: of shape {targets.shape}; classification needs one class number for each sample; "
            "set data.task: regression to fit several values"
        )
    if targets.dtype.kind == "f":
        targets = finite(where, targets)
    labels = targets.reshape(-1).astype(np.int64)
    wrong = (labels != targets.reshape(-1)) | (labels < 0) | (labels >= (options.classes or np.inf))
    if wrong.any():
        allowed = f"0 to {options.classes - 1}" if options.classes else "0, 1, 2 ..."
        raise DataError(
            f"{where}: {wrong.sum()} values are no classes, the first {targets.reshape(-1)[wrong.argmax()]} at "
            f"[{wrong.argmax()}]; classes are the integers {allowed}; check data.classes, or set data.task: regression"
        )
    return labels


def _values(stored: _Stored, options: Arrays) -> NDArray[np.float32]:
    where, targets = f"{stored.where} {options.targets}", stored.targets
    if targets.ndim > 2:
        raise DataError(f"{where}: of shape {targets.shape}; regression needs (N,) or (N, outputs)")
    return np.ascontiguousarray(finite(where, targets.reshape(len(targets), -1)))


def _outputs(parts: Mapping[str, Examples], task: str, options: Arrays) -> int:
    """Number of outputs that a model needs, after a check that all parts agree in their shapes."""
    shapes = {role: (part.shape, "->", *part.targets.shape[1:]) for role, part in parts.items()}
    if len(set(shapes.values())) > 1:
        told = {role: " and ".join(str(tuple(one.shape)) for one in part.each) for role, part in parts.items()}
        listed = ", ".join(f"{role} {shape}" for role, shape in told.items())
        raise DataError(f"{options.path}: the groups differ in the shape of inputs or targets ({listed})")
    if len({tuple(one.dtype for one in part.each) for part in parts.values()}) > 1:
        raise DataError(
            f"{options.path}: inputs of one group are of another type than those of the others; store all with one type"
        )
    if task == "regression":
        return parts["train"].targets.shape[1]
    labels = {role: part.targets for role, part in parts.items()}
    return options.classes or count_classes(labels, f"{options.path} {options.targets}")


def _divided(examples: Examples, options: Arrays) -> tuple[Examples, Examples]:
    """Training and test part, at random by split_seed, each in stored order."""
    count = len(examples.targets)
    held = max(1, round(options.test_fraction * count))
    if held == count:
        raise DataError(
            f"{options.path}: of {count} samples test_fraction {options.test_fraction} leaves none to train"
        )
    order = torch.randperm(count, generator=generator("test split", options.split_seed))
    return examples.take(order[held:].sort().values), examples.take(order[:held].sort().values)
