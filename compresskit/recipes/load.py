"""Recipe files to `Recipe`: what is short for something else is written out, and the name is the file's."""

from collections.abc import Sequence
from pathlib import Path

from compresskit.recipes.hints import keys_of, kinds, option_class
from compresskit.recipes.schema import Recipe
from compresskit.recipes.typed import Values, load_typed
from compresskit.recipes.yaml_reader import Node


def load_recipe(path: Path, overrides: Sequence[str] = (), *, verb: str = "", require: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` with `key.sub=value` and `~key` overrides applied.

    require: the sections that `verb` needs. Raises RecipeError with one line for each mistake found.
    """

    def complete(values: Values) -> None:
        values.setdefault("name", Node(path.stem))
        for name, hint in keys_of(Recipe).items():
            if name in values and values[name].value is None and (option_class(hint) or kinds(hint)):
                values[name].value = {}  # `fuse:` with nothing below it asks for the defaults
        if "model" in values:
            _write_out_model(values["model"])

    return load_typed(Recipe, path, overrides, verb=verb, require=require, complete=complete)


def _write_out_model(model: Node) -> None:
    """`torchvision:resnet18` names a model of torchvision, `package.module:factory` a function of the user's."""
    if isinstance(model.value, str):
        model.value = {"kind": Node(model.value, model.line)}
    values = model.value if isinstance(model.value, dict) else {}
    kind = values.get("kind")
    if kind is None or not isinstance(kind.value, str) or ":" not in kind.value:
        return
    head, _, rest = kind.value.partition(":")
    key, value, name = ("name", rest, "torchvision") if head == "torchvision" else ("target", kind.value, "factory")
    if key not in values:  # else both say it, and the kind is refused as it is written
        values[key] = Node(value, kind.line)
        kind.value = name
