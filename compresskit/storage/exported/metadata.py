"""What an exported file tells of itself: how inputs are normalised, their size, the names of classes."""

import ast
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compresskit.errors import CheckpointError, RecipeError

FILE = "preprocessing.json"  # in a .pt2 archive
KEYS = ("task", "inputs", "mean", "std", "scale", "classes", "normalised_inside", "probabilities", "quantized")


def as_texts(told: dict[str, Any]) -> dict[str, str]:
    """By key JSON, for formats that hold texts."""
    return {key: json.dumps(value) for key, value in told.items()}


def as_constants(told: dict[str, Any]) -> dict[str, Any]:
    """By name, for Python source."""
    return {name.upper(): told[name] for name in KEYS if name in told}


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file tells; nothing of it is run. Raises CheckpointError where it cannot be read."""
    try:
        return _READERS[path.suffix](path)
    except RecipeError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; name one that `export` wrote") from error
    except Exception as error:  # what a damaged file makes of its reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: it cannot be read ({reason}); export it again") from error


def _of_program(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(f"/{FILE}")]
        return dict(json.loads(archive.read(found[0]))) if found else {}


def _of_onnx(path: Path) -> dict[str, Any]:
    if find_spec("onnx") is None:
        raise RecipeError(f"{path}: reading it needs onnx, not installed here; install compresskit[onnx]")
    import onnx

    pairs = {pair.key: pair.value for pair in onnx.load(path, load_external_data=False).metadata_props}
    return {key: json.loads(pairs[key]) for key in KEYS if key in pairs}


def _of_source(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id.lower()
            if name in KEYS:
                found[name] = ast.literal_eval(statement.value)
    return found


_READERS = {".pt2": _of_program, ".onnx": _of_onnx, ".py": _of_source}
EXPORTED = tuple(_READERS)  # ends of the names of files
