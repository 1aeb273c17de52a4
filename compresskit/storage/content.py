"""The plain part of a checkpoint, and of exported files, checked as recipes are. Home of pydantic in storage."""

import reprlib
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Len
from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, StringConstraints, ValidationError

from compresskit.errors import CheckpointError
from compresskit.graph.format.structure import places_of
from compresskit.shapes import shapes_of

DEPTH = 40  # of nesting: a recipe in a history takes about ten
NUMBERS = 2**31  # that one sample may have
_SHOWN = 3  # problems in a message
_BYTE = 1 / 255  # scale of inputs that data hold as bytes

Finite = Annotated[float, AllowInfNan(False)]
OneShape = Annotated[list[Annotated[int, Ge(1)]], Len(1, 8)]
Name = Annotated[str, StringConstraints(max_length=1000)]
Task = Literal["classification", "regression", "segmentation", "detection", "own"]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _CameIn(_Strict):
    door: Literal["fx", "export"]
    assumed: list[Name]


class _Entry(_Strict):
    """What `inspect` and reports read of a verb that was run; all of it may lack."""

    verb: Name = ""
    seed: int | None = None
    metrics: dict[Name, float] = {}
    command: list[str] = []
    versions: dict[Name, str] = {}
    git: str | None = None
    entry: _CameIn | None = None


class _Model(_Strict):
    kind: Name = ""


class _Preprocessing(_Strict):
    mean: list[Finite] = []
    std: list[Annotated[Finite, Ge(0)]] = []
    bytes: list[bool] = []
    classes: list[Name] = []


class _Content(_Strict):
    graph: dict[str, Any]
    tensors: dict[str, Any]
    masks: dict[str, Any]
    model: _Model
    input_shape: Any
    task: Task
    preprocessing: _Preprocessing
    history: list[_Entry]


class _OneInput(_Content):
    input_shape: OneShape


class _Inputs(_Content):
    input_shape: Annotated[list[OneShape], Len(2, 8)]


def _structure(value: Any) -> Any:
    """Raises ValueError, which pydantic tells, for what is no structure."""
    if value is not None:
        places_of(value)
    return value


class _Taken(_Strict):
    """An argument of an exported network."""

    type: Literal["float32", "float64", "int64", "uint8"]
    shape: Annotated[list[Literal["N"] | Annotated[int, Ge(1)]], Len(2, 9)]


class _Told(_Strict):
    """What an exported file tells of itself."""

    task: Task
    inputs: Annotated[list[_Taken], Len(1, 8)]
    mean: list[Finite] = []
    std: list[Annotated[Finite, Gt(0)]] = []
    scale: float = 1.0
    classes: list[Name] = []
    normalised_inside: bool
    probabilities: bool
    quantized: Literal["int8"] | None = None
    outputs: Annotated[Any, AfterValidator(_structure)] = None


def check_content(content: dict[str, Any]) -> None:
    """Raises CheckpointError with the keys that are missing or hold what they cannot."""
    if (depth := _depth(content)) > DEPTH:
        raise CheckpointError(f"it is nested {depth} levels deep or more, {DEPTH} are allowed; take another copy")
    try:
        found = (_Inputs if _has_lists(content.get("input_shape")) else _OneInput).model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"it is damaged ({_problems(error)}); take another copy of the file") from error
    numbers = sum(prod(shape) for shape in shapes_of(found.input_shape))
    if numbers > NUMBERS:
        raise CheckpointError(f"its samples would have {numbers:,} numbers; take another copy of it")


def check_told(told: Mapping[str, Any]) -> None:
    """Raises CheckpointError where an exported file tells of itself what `export` would not have written."""
    try:
        found = _Told.model_validate(dict(told))
    except ValidationError as error:
        raise CheckpointError(f"what it tells of itself is damaged ({_problems(error)}); export it again") from error
    if (problem := _contradiction(found, found.inputs[0])) is not None:
        raise CheckpointError(f"what it tells of itself does not fit together ({problem}); export it again")


def _contradiction(told: _Told, first: _Taken) -> str | None:
    """Between keys, each of which may hold what it does; None where there is none."""
    channels, given = first.shape[1], len(told.mean)
    if given != len(told.std):
        return f"mean has {given} numbers and std {len(told.std)}; one of each for a channel is allowed"
    if told.scale not in (1.0, _BYTE):
        return f"scale: {told.scale} was found; allowed: 1, and 1/255 where data are bytes"
    if told.probabilities and told.task != "classification":
        return f"probabilities: true was found, and the task is {told.task}; they are of classes"
    if not told.normalised_inside:
        return None
    if len(told.inputs) > 1 or given != channels:
        return f"normalised_inside: mean has {given} numbers, and inputs {len(told.inputs)} of {channels} channels"
    if (first.type == "uint8") != (told.scale == _BYTE):
        return f"normalised_inside: the scale of inputs of {first.type} is {told.scale}; bytes alone have 1/255"
    return None


def _problems(error: ValidationError) -> str:
    """The first, each with its place and what was found there."""
    told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}{_found(one)}" for one in error.errors()[:_SHOWN]]
    return "; ".join(told) + (f" and {error.error_count() - _SHOWN} more" if error.error_count() > _SHOWN else "")


def _found(problem: Mapping[str, Any]) -> str:
    return "" if problem["type"] == "missing" else f", found {reprlib.repr(problem['input'])}"


def _has_lists(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def _depth(value: Any) -> int:
    """Levels of lists and mappings in each other, counted up to one more than is allowed."""
    level, depth = [value], 0
    while level and depth <= DEPTH:
        nested = [item for item in level if isinstance(item, dict | list | tuple)]
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth
