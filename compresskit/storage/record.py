"""run.json, the record of a run: what it was made of, by which versions, when, and how it ended."""

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compresskit import __version__, process
from compresskit.errors import CompresskitError, RunFolderError
from compresskit.storage.atomic import write_json
from compresskit.storage.reading import file_hash

RECORD = "run.json"
CHECKPOINTS = (
    "model.pt",
    "best.pt",
    "pruned.pt",
    "reconstructed.pt",
    "expanded.pt",
    "fused.pt",
)  # what runs start from


def read_record(path: Path) -> dict[str, Any]:
    """Of the run in the folder, whole; {"cleared": True} of one on its way out. Raises RunFolderError for no run."""
    try:
        record: dict[str, Any] = json.loads((path / RECORD).read_text())
        if not record.get("cleared"):
            _ = record["verb"], record["made_of"]
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path}: it holds files, but no run of compresskit ({RECORD}); use another --out"
        ) from error


def begin(path: Path, verb: str, made_of: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes the record of a run that starts. about: what tells runs apart, and is no part of what it was made of."""
    write_json(path / RECORD, {"verb": verb, "made_of": made_of, "started": _now(), **about, **provenance()})


def go_on(path: Path) -> None:
    """Takes back how the run ended, for it goes on."""
    record = read_record(path)
    if record.pop("ended", None) is not None:
        write_json(path / RECORD, record)


@contextmanager
def ending(path: Path) -> Iterator[None]:
    """Around the work of a run: writes down when it ended, with the hashes of its checkpoints or what stopped it.

    A run that was killed has no such entry. What cannot be written is left out, for it must not hide another error.
    """
    told: dict[str, Any] = {}
    try:
        yield
        told = {"checkpoints": {str(file.relative_to(path)): file_hash(file) for file in _checkpoints(path)}}
    except KeyboardInterrupt:
        told = {"interrupted": True}
        raise
    except BaseException as error:
        told = {"error": str(error) or type(error).__name__}
        raise
    finally:
        with suppress(CompresskitError):
            write_json(path / RECORD, read_record(path) | {"ended": {"at": _now()} | told})


def _checkpoints(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*.pt") if file.name in CHECKPOINTS)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Command line, versions, git revision of the working directory and platform."""
    return {
        "command": process.command(),
        "versions": {"compresskit": __version__} | {name: _version(name) for name in ("torch", "torchvision", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git_revision() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
