"""A recipe file and overrides to an instance of an option class, or every mistake at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from compresskit.errors import RecipeError
from compresskit.recipes.build import build
from compresskit.recipes.overrides import apply_overrides
from compresskit.recipes.problems import Problem, lines_of
from compresskit.recipes.yaml_reader import Node, UnreadableError, read_text, read_yaml

T = TypeVar("T")
Values = dict[str, Node]


def load_typed(
    schema: type[T],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    verb: str = "",
    require: Sequence[str] = (),
    complete: Callable[[Values], None] = lambda values: None,
    inherit: Callable[[Values], None] = lambda values: None,
) -> T:
    """The `schema` instance that the file at `path` describes, once the overrides are applied.

    require: sections that `verb` needs. complete: called on the values before and after the overrides, to write out
    what is short for something else. inherit: called on them last, where one section takes from another what it leaves
    out. Raises RecipeError with one line for each mistake.
    """
    try:
        root, problems = read_yaml(read_text(path))
        if root.value is None:
            raise UnreadableError(Problem("is empty; a recipe is a mapping of sections"))
        if not isinstance(root.value, dict):
            raise UnreadableError(Problem("must be a mapping of sections", root.line))
    except UnreadableError as error:
        raise RecipeError(error.problem.format(str(path))) from error
    complete(root.value)
    problems += apply_overrides(root, overrides)
    complete(root.value)
    inherit(root.value)
    for section in [section for section in require if section not in root.value]:
        problems.append(Problem(f"the recipe has no '{section}' section, which 'compresskit {verb}' needs"))
    instance, found = build(schema, root)
    if problems + found:
        raise RecipeError(*lines_of(problems + found, str(path)))
    result: T = instance
    return result
