"""The plain part of a checkpoint, checked as recipes are. Home of pydantic in storage."""

from math import prod
from typing import Annotated, Any, Literal

from annotated_types import Ge, Len
from pydantic import AllowInfNan, BaseModel, ConfigDict, StringConstraints, ValidationError

from compresskit.errors import CheckpointError
from compresskit.shapes import shapes_of

DEPTH = 40  # of nesting: a recipe in a history takes about ten
NUMBERS = 2**31  # that one sample may have
_SHOWN = 3  # problems in a message

Finite = Annotated[float, AllowInfNan(False)]
OneShape = Annotated[list[Annotated[int, Ge(1)]], Len(1, 8)]
Name = Annotated[str, StringConstraints(max_length=1000)]


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
    task: Literal["classification", "regression", "segmentation", "detection", "own"]
    preprocessing: _Preprocessing
    history: list[_Entry]


class _OneInput(_Content):
    input_shape: OneShape


class _Inputs(_Content):
    input_shape: Annotated[list[OneShape], Len(2, 8)]


def check_content(content: dict[str, Any]) -> None:
    """Raises CheckpointError with the keys that are missing or hold what they cannot."""
    if (depth := _depth(content)) > DEPTH:
        raise CheckpointError(f"it is nested {depth} levels deep or more, {DEPTH} are allowed; take another copy")
    try:
        found = (_Inputs if _has_lists(content.get("input_shape")) else _OneInput).model_validate(content)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:_SHOWN]]
        more = f" and {error.error_count() - _SHOWN} more" if error.error_count() > _SHOWN else ""
        raise CheckpointError(f"it is damaged ({'; '.join(told)}{more}); take another copy of the file") from error
    numbers = sum(prod(shape) for shape in shapes_of(found.input_shape))
    if numbers > NUMBERS:
        raise CheckpointError(f"its samples would have {numbers:,} numbers; take another copy of it")


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
