"""The folder of a run: fixed names, nothing overwritten unasked, and what is needed to repeat the run."""

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import ResourceError, RunFolderError
from compresskit.storage.atomic import atomic_write, is_temporary, unwritable, write_json
from compresskit.storage.lock import Lock, holding, is_lock
from compresskit.storage.reading import file_hash
from compresskit.storage.record import RECORD, begin, ending, go_on, read_record

if TYPE_CHECKING:
    from compresskit.distributed import Group  # which imports torch, for which no reader of reports should wait

PATIENCE = 30.0  # seconds until what one machine writes is there for all: file systems over a network keep listings


@dataclass(frozen=True)
class RunFolder:
    """Where one run of one verb writes. Names in it: model.pt, best.pt, report.json, report.md, recipe.yaml, ..."""

    path: Path

    def copy(self, source: Path, name: str) -> None:
        with atomic_write(self.path / name) as temporary:
            shutil.copyfile(source, temporary)

    def write_text(self, name: str, text: str) -> None:
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextmanager
def open_run_folder(
    path: Path,
    verb: str,
    recipe: dict[str, Any],
    *,
    force: bool,
    resume: bool,
    inputs: Sequence[Path] = (),
    data: str = "",
    about: Mapping[str, Any] | None = None,
) -> Iterator[RunFolder]:
    """Makes the folder of a run, or takes the one that is there when the user said what should become of it.

    It is this process's alone until the context is left. run.json is the first file in it and the last one to go, so
    a folder without it was never ours; locks and temporary files are no content, and the latter are removed.
    force: an earlier run's files are removed first; a folder that holds no run is never cleared.
    resume: the earlier run must be of the same verb, recipe, inputs and data; with `force` as well, another is removed.
    inputs: files that are read, none of which may lie in the folder. data: fingerprint of the data set. about: what the
    record tells beside what the run is made of.
    Raises RunFolderError naming the folder and the way out.
    """
    for source in inputs:
        if path.resolve() in (source.resolve(), *source.resolve().parents):
            raise RunFolderError(f"{path}: it holds the input {source}; write elsewhere with --out")
    made_of = recipe | {"--checkpoint": [file_hash(source) for source in inputs], "the data": data}
    with ExitStack() as held:
        try:
            _check_kind(path)
            if _occupied(path):
                read_record(path)  # nothing of ours goes into a folder of somebody else's, a lock neither
            path.mkdir(parents=True, exist_ok=True)
            held.enter_context(holding(_locked(path)))
            _remove_temporaries(path)
            if _goes_on(path, verb, made_of, force=force, resume=resume):
                go_on(path)
            else:
                _clear(path)
                begin(path, verb, made_of, about or {})
        except OSError as error:
            raise unwritable(path, error) from error
        with ending(path):
            yield RunFolder(path)


def check_shared(path: Path, group: "Group") -> None:
    """Raises RunFolderError, in all processes, where one does not see the folder that the main one has opened."""
    record = group.in_main((path / RECORD).read_text)
    blind = group.gather([] if _appears(path / RECORD, record) else [f"process {group.rank} on {platform.node()}"])
    if blind:
        raise RunFolderError(
            f"{path}: {', '.join(blind)} cannot see it; processes on several machines need a folder that all of them "
            "share, under the same path: start them in one, or name one with --out"
        )


def _appears(path: Path, text: str) -> bool:
    """Whether the file holds the text, or will in a while: file systems of several machines take some time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if path.read_text() == text:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def slug(name: str) -> str:
    """The name as a folder's: letters and digits, with a dash for each run of others."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def check_disk(path: Path, nbytes: int) -> None:
    """Raises ResourceError when the disk of `path` has less than `nbytes` free."""
    existing = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise ResourceError(
            f"{path}: {_amount(nbytes)} are needed and {_amount(free)} are free; "
            "free some space or write elsewhere with --out"
        )


def _amount(nbytes: float) -> str:
    """In the largest unit of which there is one at least."""
    units = ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)
    unit, size = next((found for found in units if nbytes >= found[1]), units[-1])
    return f"{nbytes / size:,.0f} {unit}" if size == 1 else f"{nbytes / size:,.1f} {unit}"


def _check_kind(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise RunFolderError(f"{path}: it is a file, not a folder; write elsewhere with --out")


def _content(path: Path) -> list[Path]:
    """What lies in a folder but for locks and what was never finished."""
    return [entry for entry in path.iterdir() if not is_lock(entry) and not is_temporary(entry)]


def _occupied(path: Path) -> bool:
    return path.is_dir() and bool(_content(path))


def _locked(path: Path) -> Lock:
    lock = Lock(path / ".lock")
    if not lock.acquire():
        raise RunFolderError(
            f"{path}: {lock.owner() or 'another process'} is writing there; wait for it, stop it, or write elsewhere "
            "with --out"
        )
    return lock


def _goes_on(path: Path, verb: str, made_of: dict[str, Any], *, force: bool, resume: bool) -> bool:
    """Whether the run in the folder is the one to go on with; where it is not, it may be cleared."""
    if not _occupied(path):
        return False
    record = read_record(path)
    if record.get("cleared"):
        return False
    if not resume and not force:
        raise RunFolderError(f"{path}: it is not empty; use --force to start over, --resume to go on, or another --out")
    changed = sorted(_differences(record["made_of"], made_of))
    if resume and record["verb"] == verb and not changed:
        return True
    if force:
        return False
    if record["verb"] != verb:
        raise RunFolderError(f"{path}: it holds a run of '{record['verb']}', not of '{verb}'; use another --out")
    raise RunFolderError(
        f"{path}: the run there was made of something else (changed: {', '.join(changed)}); "
        "resume with the same recipe, overrides, checkpoint and data, or start over with --force"
    )


def _clear(path: Path) -> None:
    """Removes all but the lock. The record goes last, and says until then that the rest is on its way out."""
    if not (rest := _content(path)):
        return
    write_json(path / RECORD, {"cleared": True})
    for entry in rest:
        if entry.name != RECORD:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _remove_temporaries(path: Path) -> None:
    for entry in path.rglob(".*"):
        if is_temporary(entry):
            entry.unlink(missing_ok=True)


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for name in {*old, *new}
            for found in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [key]
