"""A recipe with some of its keys changed, as a comparison names them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskit.errors import RecipeError
from compresskit.recipes.load import load_recipe
from compresskit.recipes.schema import Recipe

Changes = Mapping[str, Any]  # values by dotted keys, as overrides on the command line name them


def variant(path: Path, overrides: Sequence[str], changes: Changes, where: str, *, verb: str = "") -> Recipe:
    """The recipe at `path` with the command line's overrides and, over them, `changes`.

    where: key of the comparison, which every message starts with. Raises RecipeError with all mistakes.
    """
    texts = [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML, too
    try:
        return load_recipe(path, [*overrides, *texts], verb=verb)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
