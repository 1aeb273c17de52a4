"""`compresskit show`: what a recipe can name, and the layers of a network as selectors see them."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from compresskit.commands.parents import checkpoint_file
from compresskit.commands.plan import layer_table
from compresskit.commands.recipe import Recipe
from compresskit.commands.result import Result, Table
from compresskit.data.registry import DATASETS
from compresskit.errors import RecipeError, near_names
from compresskit.models.registry import MODELS
from compresskit.recipes.describe import describe
from compresskit.storage.checkpoint import load

TOPICS = ("models", "datasets", "recipes", "layers")


def run(topic: str, names: Sequence[str], checkpoint: Path | None, of_runs: Sequence[str] = ()) -> Result:
    """names: of `recipes` a section; default: all.   of_runs: options given that only `show runs` has."""
    sections = [field.name for field in fields(Recipe)]
    if topic not in TOPICS:
        raise RecipeError(f"show: {topic!r} was given; allowed: {', '.join((*TOPICS, 'runs'))}")
    if checkpoint is not None and topic != "layers":
        raise RecipeError(f"show {topic}: --checkpoint is for show layers alone")
    if of_runs:
        raise RecipeError(f"show {topic}: --{of_runs[0]} is for show runs alone")
    if len(names) > 1:
        raise RecipeError(f"show {topic}: one name at most is allowed; {' '.join(names)} were given")
    section = next(iter(names), None)
    if section is not None and (topic != "recipes" or section not in sections):
        near = f"; {near_names(section, sections)}" if topic == "recipes" else ""
        raise RecipeError(f"show {topic}: it has no section {section!r}{near}")
    result = Result("show", topic)
    if topic == "layers":
        if checkpoint is None:
            raise RecipeError("show layers: name a checkpoint with --checkpoint")
        found = load(checkpoint_file(checkpoint))
        result.tables = [layer_table(found.network, found.input_shape, found.masks)]
    elif topic == "recipes":
        wanted = sections if section is None else [section]
        rows = [tuple(row) for name in wanted for row in describe(Recipe, name)]
        result.tables = [Table("keys of a recipe", ("key", "value", "default", "meaning"), rows)]
    else:
        registry = MODELS if topic == "models" else DATASETS
        rows = [(kind, (cls.__doc__ or "").split("\n")[0]) for kind, cls in registry.items()]
        result.tables = [Table(topic, ("kind", "what it is"), rows)]
    return result
