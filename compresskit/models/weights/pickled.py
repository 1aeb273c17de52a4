"""Tensors of files in which torch.save wrote Python objects, a whole module perhaps, without making those objects.

Such a file names classes and functions, and torch would call them. Here a few are known, which make tensors of the
numbers in the file; every other name stands for an `Inert` thing, which takes what it is given and does nothing. A
module keeps its tensors in dictionaries, and so does the inert thing in its place.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PICKLE = "/data.pkl"
_TYPES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
_LEVELS = 3  # of dictionaries in which a module is looked for


class StateOfModule(dict[str, Any]):
    """What a module's own state_dict() would give. of: the name of its class."""

    def __init__(self, state: dict[str, Any], of: str) -> None:
        super().__init__(state)
        self.of = of


class Inert:
    """In the place of an object of any class. state: what it would be filled with; entries: where it is a mapping."""

    __slots__ = ("entries", "state")
    state: dict[str, Any]
    entries: dict[Any, Any]

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        made = super().__new__(cls)
        made.state, made.entries = {}, {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes any arguments."""

    def __setstate__(self, state: Any) -> None:
        whole = state[0] if isinstance(state, tuple) and state else state  # beside it are slots
        self.state = whole if isinstance(whole, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        return Inert()

    def append(self, _: Any) -> None:
        """Takes the parts of a list."""

    add = extend = append


def read_pickled(path: Path) -> Any:
    """The content of an archive of torch.save; modules in it, also in dictionaries, are their state dicts.

    Raises what zipfile and pickle raise for damaged files, ValueError for what is not read.
    """
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix(_PICKLE) for name in archive.namelist() if name.endswith(_PICKLE)]
        if len(roots) != 1:
            raise ValueError("it has no data.pkl")
        return _plain(_Reader(archive, roots[0]).load(), _LEVELS)


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(root + _PICKLE)))
        self._archive, self._root, self._storages = archive, root, dict[str, Tensor]()
        order = f"{root}/byteorder"
        if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
            raise ValueError("it was written on a machine with another order of bytes")

    def find_class(self, module: str, name: str) -> Any:
        """A name's meaning. Functions are wrapped anew each time: a pickle can change what it has found."""
        if module == "torch" and name in _TYPES:
            return name
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            return type(name, (Inert,), {"__module__": module})
        return known if isinstance(known, type) else partial(known)

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, (n,)."""
        _, kind, key, *_ = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = (
                torch.frombuffer(content, dtype=_TYPES[kind]) if content else torch.empty(0, dtype=_TYPES[kind])
            )
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)  # which refuses what lies outside of the storage


def _first(tensor: Any, *_: Any) -> Any:
    """A parameter's tensor."""
    return tensor


def _with_attributes(make: Any, _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
    """A tensor or parameter that has attributes of its own, without them."""
    return make(*arguments)


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
}


def _plain(content: Any, levels: int) -> Any:
    """State dicts in the place of modules, and dictionaries in that of other mappings."""
    if isinstance(content, Inert) and {"_parameters", "_buffers", "_modules"} <= content.state.keys():
        return StateOfModule(dict(_tensors(content, "")), type(content).__name__)
    if isinstance(content, Inert) and content.entries:
        content = content.entries
    if not isinstance(content, dict) or levels == 0:
        return content
    return {name: _plain(value, levels - 1) for name, value in content.items()}


def _tensors(module: Inert, prefix: str) -> Iterator[tuple[str, Any]]:
    """By name, in the order of state_dict()."""
    state = module.state
    passing = state.get("_non_persistent_buffers_set", ())
    buffers = {name: value for name, value in state["_buffers"].items() if name not in passing}
    for name, value in (state["_parameters"] | buffers).items():
        if value is not None:
            yield prefix + name, value
    for name, inner in state["_modules"].items():
        if inner is not None:
            yield from _tensors(inner, f"{prefix}{name}.")
