"""State dicts in the files that people have: of torch and safetensors, whole or in shards, alone or beside others."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from compresskit.errors import CheckpointError
from compresskit.models.weights.pickled import StateOfModule, read_pickled

# Under which training scripts keep it beside other things; averaged weights first, as timm takes them.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_KEYS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_LEVELS = 3  # of such keys in each other
INDEX = ".index.json"
_INDEX_SIZE = 2**26  # bytes that the index of shards may have
_OBJECT = re.compile(r"(?:GLOBAL|global) ([A-Za-z_][\w.]*\.\w+)|safe_globals\(\[([\w.]+)")  # in torch's words
_SCRIPT = "/constants.pkl"  # that archives of TorchScript have
CHECKPOINT = "compresskit checkpoint"  # the `format` of a checkpoint of ours
_ARCHIVE = b"PK\x03\x04"  # how a zip archive begins
_PROGRAMS = (".pt2", ".onnx", ".py")  # what `export` writes beside state dicts
_EXTRA = "_extra_state"  # how the names of what torch's get_extra_state gives end
_SHOWN = 5  # names of tensors in a message


@dataclass(frozen=True)
class Found:
    """What a file holds. notes: which of several state dicts it is, and what it was, a sentence each."""

    state: dict[str, Tensor]
    notes: list[str]


class OwnCheckpoint(CheckpointError):
    """A file that holds a network, not its weights alone."""


def read_state(path: Path) -> Found:
    """The state dict in a .safetensors file, in one of torch.save, where it may lie under one of the usual keys or be
    that of a pickled module, or in the shards that a *.index.json names. Nothing in a file is run.

    Raises CheckpointError for a file that cannot be read or that holds no state dict.
    """
    if path.suffix in _PROGRAMS:
        raise CheckpointError(
            f"{path}: a {path.suffix} file is a program; `compresskit export` makes a state dict, .safetensors, of the "
            "checkpoint that it came from"
        )
    content = _read_shards(path) if path.name.endswith(INDEX) else _read(path)
    if isinstance(content, dict) and content.get("format") == CHECKPOINT:
        raise OwnCheckpoint(
            f"{path}: it is a checkpoint of compresskit; give it to --checkpoint, or make a state dict of it: "
            f"compresskit export {path} --out {path.with_suffix('.safetensors').name}"
        )
    key = ""
    for _ in range(_LEVELS):
        inner = next((name for name in _KEYS if isinstance(content, dict) and _is_state(content.get(name))), None)
        if inner is None or not isinstance(content, dict):
            break
        content, key = content[inner], f"{key}.{inner}".lstrip(".")
    content, extra = _without_extra(content)
    if not isinstance(content, dict) or not _is_whole(content):
        raise CheckpointError(
            f"{path}: it holds more than a state dict ({_others(content)}); save model.state_dict() alone, or under "
            f"one of {', '.join(_KEYS[:7])}, and give a checkpoint of compresskit to --checkpoint"
        )
    if strange := [f"{name} ({told(value)})" for name, value in content.items() if not is_plain(value)]:
        raise CheckpointError(
            f"{path}: layers take dense numbers of 16, 32 or 64 bits, not {', '.join(strange[:_SHOWN])}; convert them "
            "before saving"
        )
    notes = [f"the averaged weights ({key}) were taken"] if key.split(".")[0] in AVERAGED else []
    if isinstance(content, StateOfModule):
        notes.append(f"a module was pickled there ({content.of}); its tensors were taken, and none of its code was run")
    if extra:
        notes.append(f"left out, since it is no tensor: {', '.join(extra[:_SHOWN])}")
    return Found(dict(content), notes)


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor with all of its numbers, of a type that layers compute in."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and not value.is_quantized
        and not value.is_complex()
        and value.element_size() > (1 if value.is_floating_point() else 0)  # no float8
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()  # no strides of 0
    )


def told(tensor: Tensor) -> str:
    """Its type and kind in a few words."""
    kind = "on meta" if tensor.device.type == "meta" else str(tensor.layout).removeprefix("torch.")
    return f"{str(tensor.dtype).removeprefix('torch.')}, {kind}"


def _is_state(value: Any) -> bool:
    """Whether tensors may be in it: beside them lie settings under the same keys."""
    return isinstance(value, Mapping) and any(isinstance(one, Tensor | Mapping) for one in value.values())


def _is_whole(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _without_extra(content: Any) -> tuple[Any, list[str]]:
    """The content without what modules add to their tensors (`get_extra_state`), and the names of that."""
    if not isinstance(content, dict):
        return content, []
    extra = [
        name for name, value in content.items() if str(name).endswith(_EXTRA) and not isinstance(value, Tensor)
    ]  # fmt: skip
    return {name: value for name, value in content.items() if name not in extra} if extra else content, extra


def _others(content: Any) -> str:
    """What stands in the way, in words."""
    if not isinstance(content, dict):
        return type(content).__name__
    kinds = {name: type(value).__name__ for name, value in content.items() if not isinstance(value, Tensor)}
    kinds |= {name: f"module {value.of}" for name, value in content.items() if isinstance(value, StateOfModule)}
    return ", ".join(f"{name}: {kind}" for name, kind in list(kinds.items())[:_SHOWN]) or "names that are no text"


def _read(path: Path) -> Any:
    with _readable(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        if archived := _is_archive(path):
            _check_archive(path)
        try:
            with warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # Python objects, perhaps
            if not archived:
                raise
            return read_pickled(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Lets a regular file be read; whatever goes wrong is a CheckpointError."""
    try:
        if not S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise CheckpointError(f"{path}: it is no file but a folder, a pipe or a device; name a state dict")
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; `weights` is a path to a state dict") from error
    except Exception as error:  # what is no state dict can fail in any way when it is read as one
        raise CheckpointError(
            f"{path}: no state dict can be read from it ({_why(error)}); save one with "
            "torch.save(model.state_dict(), path)"
        ) from error


def _why(error: Exception) -> str:
    """torch's own words advise to run what is in the file."""
    if isinstance(error, zipfile.BadZipFile):
        return "it is cut off or damaged"
    if isinstance(error, OSError | SafetensorError | ValueError):
        return str(error).partition("\n")[0]
    found = _OBJECT.search(str(error))
    if found is None:
        return "it is no file of torch.save"
    return f"it holds a Python object, {found[1] or found[2]}, which is never run"


def _is_archive(path: Path) -> bool:
    """What torch wrote before 1.6 is none, and has no checksums."""
    with path.open("rb") as file:
        return file.read(len(_ARCHIVE)) == _ARCHIVE


def _check_archive(path: Path) -> None:
    """Raises CheckpointError where a part differs from its checksum, at which torch does not look, where the parts are
    larger than the file, and for TorchScript.

    It reads the file once.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith(_SCRIPT) for name in archive.namelist()):
            raise CheckpointError(
                f"{path}: it is a program (TorchScript), which is never run; where you trust it, save its state dict: "
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
            )
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise CheckpointError(
                f"{path}: its parts are compressed, as torch never does, and may take any memory; unpack it, or save "
                "it again with torch.save"
            )
        damaged = archive.testzip()
    if damaged:
        raise CheckpointError(
            f"{path}: {damaged} fails its checksum; take another copy (or save it again, if it was written under "
            "torch.serialization.set_crc32_options(False))"
        )


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all files in the index, which must lie in its folder, each from the file that it is said to be."""
    places = _places(path)
    outside = [name for name in places.values() if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"{path}: it names {outside[0]!r}, which is no file of its own folder; take another copy")
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(places.values()):
        content = _read(path.with_name(name))
        lacking = [key for key, file in places.items() if file == name and key not in content]
        if lacking:
            raise CheckpointError(f"{path}: {name} does not hold {lacking[0]}, which the index says; take other copies")
        found |= {key: content[key] for key, file in places.items() if file == name}
    return found


def _places(path: Path) -> dict[str, str]:
    """By tensor, the file that the index of shards gives for it."""
    with _readable(path), path.open("rb") as file:
        content = file.read(_INDEX_SIZE + 1)
    if len(content) > _INDEX_SIZE:
        raise CheckpointError(f"{path}: an index of shards has at most {_INDEX_SIZE >> 20} MB; take another copy")
    try:
        places: dict[str, str] = json.loads(content)["weight_map"]
        if not all(isinstance(text, str) for pair in places.items() for text in pair):
            raise ValueError("weight_map does not give a file for each tensor")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: it is no index of shards ({error!r}); take another copy of it") from error
    return places
