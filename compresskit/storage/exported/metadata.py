"""What an exported file tells of itself: how inputs are normalised, their size, the names of classes."""

import ast
import json
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compresskit.errors import CheckpointError, CompresskitError, RecipeError, first_line
from compresskit.storage.content import check_told
from compresskit.storage.reading import readable

FILE = "preprocessing.json"  # in a .pt2 archive
KEYS = (
    "task",
    "inputs",
    "mean",
    "std",
    "scale",
    "classes",
    "normalised_inside",
    "probabilities",
    "quantized",
    "outputs",
)
_OWN = {"normalised_inside", "probabilities"}  # keys of every file of ours; others may use words such as task, too


def as_texts(told: dict[str, Any]) -> dict[str, str]:
    """By key JSON, for formats that hold texts."""
    return {key: json.dumps(value) for key, value in told.items()}


def as_constants(told: dict[str, Any]) -> dict[str, Any]:
    """By name, for Python source."""
    return {name.upper(): told[name] for name in KEYS if name in told}


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file tells; nothing of it is run, and {} of a file that `export` did not write.

    Raises CheckpointError where it cannot be read, or tells what `export` would not have written.
    """
    try:
        with readable(path):
            told = _READERS[path.suffix](path)
    except CompresskitError:
        raise
    except Exception as error:  # what a damaged file makes of its reader
        raise CheckpointError(f"{path}: it cannot be read ({first_line(error)}); export it again") from error
    try:
        if told:
            check_told(told)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return told


def _of_program(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(f"/{FILE}")]
        return own_keys(dict(json.loads(archive.read(found[0])))) if found else {}


def _of_onnx(path: Path) -> dict[str, Any]:
    if find_spec("onnx") is None:
        raise RecipeError(f"{path}: reading it needs onnx, not installed here; install compresskit[onnx]")
    import onnx

    pairs = {pair.key: pair.value for pair in onnx.load(path, load_external_data=False).metadata_props}
    return {key: json.loads(text) for key, text in own_keys(pairs).items()}


def _of_source(path: Path) -> dict[str, Any]:
    constants = {
        statement.targets[0].id.lower(): statement.value
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    return {name: ast.literal_eval(value) for name, value in own_keys(constants).items()}


def own_keys(found: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that `export` writes; none of a file of others."""
    return {key: found[key] for key in KEYS if key in found} if found.keys() & _OWN else {}


_READERS = {".pt2": _of_program, ".onnx": _of_onnx, ".py": _of_source}
EXPORTED = tuple(_READERS)  # ends of the names of files
