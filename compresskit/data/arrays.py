"""Sets of the user's own arrays, in one HDF5 or NPZ file."""

import logging
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import h5py
import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray

from compresskit.data.dataset import DataSet, generator
from compresskit.data.labels import check_labels
from compresskit.data.memory import Examples, InMemory, assemble
from compresskit.errors import DataError
from compresskit.options import option

log = logging.getLogger("compresskit")

_IMAGE = 8  # pixels that an image has at least, each way: what is less may be channels


@option
class Arrays(InMemory):
    """Inputs (N, channels, ...) and targets from one HDF5 or NPZ file, for classification or regression.

    The arrays lie in groups (`train/inputs`, or in an NPZ file also `train_inputs`), or without groups are split by
    test_fraction. Images are (N, channels, height, width). Targets are (N,) class numbers from 0, or (N,) or
    (N, outputs) real values. uint8 inputs stay so and are divided by 255 on their way to the model; all other inputs
    become float32.
    """

    kind: Literal["arrays"] = "arrays"
    path: str  # the file; `~` is the home folder
    inputs: str = "inputs"  # name of the array of inputs
    targets: str = "targets"  # name of the array of targets
    train: str = "train"  # name of the group to train on
    test: str = "test"  # name of the group to test on
    validation_group: str | None = None  # name of the group to validate on, in place of `validation`
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2  # without groups: the part held out, drawn by split_seed
    task: Literal["auto", "classification", "regression"] = "auto"  # auto: classification if the targets are integers
    classes: Annotated[int, Ge(2)] | None = None  # number of classes; default: the largest target + 1
    add_channel: bool = False  # give images stored as (N, height, width) their channel axis

    def __post_init__(self) -> None:
        if self.validation and self.validation_group is not None:
            raise ValueError("validation and validation_group exclude each other; keep one")

    def load(self, seed: int) -> DataSet:
        """The set read from `path`.

        Raises DataError for a missing or damaged file, a name that it does not hold, an empty array, lengths or shapes
        that disagree, NaN or infinite values, and targets that are not what the task needs.
        """
        stored = _read(self)
        task = self.task
        if task == "auto":
            task = _task_of(stored["train"], self)
        parts = {role: _checked(pair, task, self) for role, pair in stored.items()}
        outputs = _outputs(parts, task, self)
        if "test" not in parts:
            parts["train"], parts["test"] = _divided(parts["train"], self)
        if task == "classification":
            labels = {role: part.targets for role, part in parts.items()}
            check_labels(self.path, labels, outputs, counted=self.classes is None)
        return assemble(
            self, parts["train"], parts["test"], parts.get("validation"), task=task, outputs=outputs, seed=seed
        )


class _Stored(NamedTuple):
    """A pair of arrays as the file holds them; `where` names the file and the group."""

    where: str
    inputs: NDArray[Any]
    targets: NDArray[Any]


def _read(options: Arrays) -> dict[str, _Stored]:
    """The pairs under "train", "test" and perhaps "validation"; only under "train" when the file has no groups."""
    path = Path(options.path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file, or it is none (a folder, a pipe); check data.path")
    groups = {"train": options.train, "test": options.test, "validation": options.validation_group}
    named = {role: group for role, group in groups.items() if group is not None}
    with _opened(path) as arrays:
        grouped = any(_names(group, options.inputs) & arrays.keys() for group in named.values())
        if not grouped and options.validation_group is None:
            return {"train": _pair(path, arrays, None, options)}
        return {role: _pair(path, arrays, group, options) for role, group in named.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of the file by name, each read when it is asked for."""
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                names: list[str] = []
                file.visit(names.append)
                yield {name: file[name] for name in names if isinstance(file[name], h5py.Dataset)}
        elif zipfile.is_zipfile(path):
            with path.open("rb") as file, np.load(file) as arrays:  # numpy leaves a damaged one open
                yield arrays
        else:
            raise DataError(f"{path}: neither an HDF5 nor an NPZ file, or a damaged one; check data.path")
    except DataError:
        raise
    except Exception as error:  # what a damaged file makes of these libraries is not told anywhere
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read ({reason}); write the file anew, as plain arrays of numbers"
        ) from error


def _pair(path: Path, arrays: Mapping[str, Any], group: str | None, options: Arrays) -> _Stored:
    found = []
    for name in (options.inputs, options.targets):
        names = _names(group, name)
        if not names & arrays.keys():
            raise DataError(
                f"{path}: holds no array {' or '.join(sorted(names))}, only {', '.join(sorted(arrays)) or 'nothing'}; "
                "set data.inputs and data.targets to the names of the arrays, data.train and data.test to their groups"
            )
        found.append(np.asarray(arrays[min(names & arrays.keys())]))
    return _Stored(f"{path}: {group}" if group else str(path), *found)


def _names(group: str | None, name: str) -> set[str]:
    return {name} if group is None else {f"{group}/{name}", f"{group}_{name}"}


def _task_of(stored: _Stored, options: Arrays) -> Literal["classification", "regression"]:
    """By the targets. Raises DataError for one-hot rows, which are classes that look like numbers to fit."""
    where, targets = f"{stored.where} {options.targets}", stored.targets
    if targets.dtype.kind in "iu":
        return "classification"
    if targets.dtype.kind == "f" and targets.size:
        if targets.ndim == 2 and targets.shape[1] > 1 and _one_hot(targets):
            raise DataError(
                f"{where}: of shape {targets.shape}, one 1 in each row and else 0, which are classes; store their "
                "numbers (argmax over the last axis), or set data.task: regression if they are to be fitted"
            )
        if targets.size == len(targets) and bool((targets == targets.round()).all()):
            log.warning(
                "%s: whole numbers of type %s are taken for values to fit; set data.task: classification if they "
                "are classes", where, targets.dtype,
            )  # fmt: skip
    return "regression"


def _one_hot(targets: NDArray[Any]) -> bool:
    return bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all())


def _check_channels(where: str, inputs: NDArray[Any]) -> None:
    """Images of (N, height, width, channels) would be taken for as many channels as they are high."""
    if inputs.ndim != 4 or inputs.shape[3] not in (1, 3, 4) or min(inputs.shape[1:3]) < _IMAGE:
        return
    text = f"{where}: of shape {inputs.shape}, which looks like (N, height, width, channels)"
    if inputs.dtype == np.uint8 or inputs.shape[1] == inputs.shape[2]:
        raise DataError(f"{text}; store (N, channels, height, width): x.transpose(0, 3, 1, 2)")
    log.warning("%s, and is read as (N, channels, height, width)", text)


def _checked(stored: _Stored, task: str, options: Arrays) -> Examples:
    """The pair as tensors of the types that MemorySplit serves."""
    where, inputs, targets = stored
    for name, array in ((options.inputs, inputs), (options.targets, targets)):
        if array.dtype.kind not in "iu" and array.dtype.newbyteorder("=") not in (np.float32, np.float64):
            raise DataError(
                f"{where} {name}: of type {array.dtype}; give integers, float32 or float64 "
                "(complex numbers as two channels)"
            )
        if array.size == 0:
            raise DataError(f"{where} {name}: empty, of shape {array.shape}; give at least one sample")
    if options.add_channel:
        inputs = np.expand_dims(inputs, 1)
    _check_channels(f"{where} {options.inputs}", inputs)
    if inputs.ndim < 2 or inputs.shape[0] != targets.shape[0]:
        raise DataError(
            f"{where}: {options.inputs} of shape {inputs.shape} and {options.targets} of shape {targets.shape} do not "
            "fit; give inputs (N, channels, ...) and N targets"
        )
    if inputs.dtype != np.uint8:
        inputs = _finite(f"{where} {options.inputs}", inputs)
    convert = _labels if task == "classification" else _values
    return Examples(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(convert(stored, options)))


def _finite(where: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """The array as float32, all of whose values are finite."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported as such
        array = array.astype(np.float32, copy=False)
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        raise DataError(
            f"{where}: {bad.sum()} of {bad.size} values are NaN or infinite in float32, the first at {list(first)}; "
            "mend or leave out those samples"
        )
    return array


def _labels(stored: _Stored, options: Arrays) -> NDArray[np.int64]:
    where, targets = f"{stored.where} {options.targets}", stored.targets
    if targets.size != len(targets):
        one_hot = targets.ndim == 2 and _one_hot(targets)
        raise DataError(
            f"{where}: of shape {targets.shape}; classification needs one class number for each sample"
            + (", which is the argmax of these one-hot rows over their last axis" if one_hot else "")
        )
    if targets.dtype.kind == "f":
        targets = _finite(where, targets)
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
    return np.ascontiguousarray(_finite(where, targets.reshape(len(targets), -1)))


def _outputs(parts: Mapping[str, Examples], task: str, options: Arrays) -> int:
    """Number of outputs that a model needs, after a check that all parts agree in their shapes."""
    shapes = {role: (*part.inputs.shape[1:], "->", *part.targets.shape[1:]) for role, part in parts.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{role} {tuple(part.inputs.shape)}" for role, part in parts.items())
        raise DataError(f"{options.path}: the groups differ in the shape of inputs or targets ({listed})")
    if len({part.inputs.dtype for part in parts.values()}) > 1:
        raise DataError(f"{options.path}: inputs are uint8 in one group only; store all with one type")
    if task == "regression":
        return parts["train"].targets.shape[1]
    return options.classes or max(2, 1 + max(int(part.targets.max()) for part in parts.values()))


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
