"""The folder of a run: fixed names, nothing overwritten unasked, and what is needed to repeat the run."""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compresskit import __version__
from compresskit.errors import ResourceError, RunFolderError
from compresskit.storage.atomic import atomic_write
from compresskit.storage.checkpoint import file_hash

RECORD = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """Where one run of one verb writes. Names in it: model.pt, best.pt, report.json, report.md, recipe.yaml, ..."""

    path: Path

    def copy(self, source: Path, name: str) -> None:
        with atomic_write(self.path / name) as temporary:
            shutil.copyfile(source, temporary)

    def write_text(self, name: str, text: str) -> None:
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(text)


def open_run_folder(
    path: Path,
    verb: str,
    recipe: dict[str, Any],
    *,
    force: bool,
    resume: bool,
    inputs: Sequence[Path] = (),
    data: str = "",
) -> RunFolder:
    """Makes the folder of a run, or takes the one that is there when the user said what should become of it.

    force: an earlier run's files are removed first; a folder that holds no run is never cleared.
    resume: the earlier run must be of the same verb, recipe, inputs and data; with `force` as well, another is removed.
    inputs: files that are read, none of which may lie in the folder. data: fingerprint of the data set.
    Raises RunFolderError naming the folder and the way out.
    """
    for source in inputs:
        if path.resolve() in (source.resolve(), *source.resolve().parents):
            raise RunFolderError(f"{path}: it holds the input {source}; write elsewhere with --out")
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path}: it is a file, not a folder; write elsewhere with --out")
    occupied = path.is_dir() and any(path.iterdir())
    made_of = recipe | {"--checkpoint": [file_hash(source) for source in inputs], "the data": data}
    resume = occupied and resume and _is_same_run(path, verb, made_of, otherwise_clear=force)
    if occupied and not resume and force:
        _clear(path)
    elif occupied and not resume:
        raise RunFolderError(f"{path}: it is not empty; use --force to start over, --resume to go on, or another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path)
        if not resume:
            folder.write_text(RECORD, json.dumps({"verb": verb, "made_of": made_of, **provenance()}, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(f"{path}: it cannot be made ({error.strerror}); write elsewhere with --out") from error
    return folder


def slug(name: str) -> str:
    """The name as a folder's: letters and digits, with a dash for each run of others."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def provenance() -> dict[str, Any]:
    """Command line, versions, git revision of the working directory and platform."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"compresskit": __version__} | {name: _version(name) for name in ("torch", "torchvision", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def check_disk(path: Path, nbytes: int) -> None:
    """Raises ResourceError when the disk of `path` has less than `nbytes` free."""
    existing = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise ResourceError(
            f"{path}: {nbytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; "
            "free some space or write elsewhere with --out"
        )


def _is_same_run(path: Path, verb: str, made_of: dict[str, Any], *, otherwise_clear: bool) -> bool:
    """Whether the run in the folder can go on; where it cannot and may not be cleared, RunFolderError says why."""
    record = _read_record(path)
    changed = sorted(_differences(record["made_of"], made_of))
    if record["verb"] == verb and not changed:
        return True
    if otherwise_clear:
        return False
    if record["verb"] != verb:
        raise RunFolderError(f"{path}: it holds a run of '{record['verb']}', not of '{verb}'; use another --out")
    raise RunFolderError(
        f"{path}: the run there was made of something else (changed: {', '.join(changed)}); "
        "resume with the same recipe, overrides, checkpoint and data, or start over with --force"
    )


def _clear(path: Path) -> None:
    _read_record(path)
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / RECORD).read_text())
        return {"verb": record["verb"], "made_of": record["made_of"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path}: it holds files, but no run of compresskit ({RECORD}); use another --out"
        ) from error


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for name in {*old, *new}
            for found in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [key]


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
