"""Tensors of files in which torch.save wrote Python objects, a whole module perhaps, without making those objects.

Such a file names classes and functions, and torch would call them. Here a few are known, which make tensors of the
numbers in the file; every other name stands for an `Inert` thing, which takes what it is given and does nothing. A
module keeps its tensors in dictionaries, and so does the inert thing in its place.
"""

import io
import pickle
import re
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
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128},
    "UntypedStorage": torch.uint8,  # of types that are younger than this way to write them
}
_LEVELS = 3  # of dictionaries in which a module is looked for
_PACKED = re.compile(r"torch\.(ao\.)?nn\.([a-z]+\.)?quantized\b")  # where modules are that keep numbers in no tensor
_HOOK = "SpectralNormStateDictHook"  # which changes no tensor of a state dict
_LETTERS = 2**24  # in the names of all modules and tensors of a file; one that lies in others has many names


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
        return _Plain().of(_Reader(archive, roots[0]).load(), _LEVELS)


class _Reader(pickle._Unpickler):
    """Python's own, not the one in C, which takes gigabytes of memory where a few bytes of a file say so."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(root + _PICKLE)))
        self._archive, self._root, self._storages = archive, root, dict[str, Tensor]()
        order = f"{root}/byteorder"
        if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
            raise ValueError("it was written on a machine with another order of bytes")

    def find_class(self, module: str, name: str) -> Any:
        """A name's meaning. Functions are wrapped anew each time: a pickle can change what it has found."""
        if module in ("torch", "torch.storage") and name in _TYPES:
            return name
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            return type(name, (Inert,), {"__module__": module})
        return known if isinstance(known, type) else partial(known)

    def persistent_load(self, pid: Any) -> Any:
        """The numbers of a storage, (n,); an inert thing for types that nothing is made of here."""
        _, kind, key, *_ = pid
        if kind not in _TYPES:
            return Inert()
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = (
                torch.frombuffer(content, dtype=_TYPES[kind]) if content else torch.empty(0, dtype=_TYPES[kind])
            )
        return self._storages[key]


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _: Any = None, __: Any = None,
    metadata: Any = None,
) -> Any:  # fmt: skip
    if isinstance(storage, Inert):
        return Inert()
    tensor = storage.as_strided(size, stride, offset)  # which refuses what lies outside of the storage
    return -tensor if metadata and metadata.get("neg") else tensor  # of a view whose numbers are stored negated


def _tensor_of_type(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _: Any, __: Any, kind: torch.dtype,
    metadata: Any = None,
) -> Any:  # fmt: skip
    return _tensor(storage.view(kind), offset, size, stride, metadata=metadata)


def _first(tensor: Any, *_: Any) -> Any:
    """A parameter's tensor."""
    return tensor


def _with_attributes(make: Any, _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
    """A tensor or parameter that has attributes of its own, without them."""
    return make(*arguments)


def _traced(state: Any, *_: Any) -> Inert:
    """A module of torch.fx, which is made of what other modules are filled with."""
    return _filled("GraphModule", state)


def _compiled(module: Any, *_: Any) -> Inert:
    """A module of torch.compile, which is made of the one inside."""
    return _filled("OptimizedModule", {"_parameters": {}, "_buffers": {}, "_modules": {"_orig_mod": module}})


def _filled(name: str, state: Any) -> Inert:
    made: Inert = type(name, (Inert,), {})()
    made.__setstate__(state)
    return made


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.fx.graph_module.reduce_graph_module": _traced,
    "torch._dynamo.eval_frame.OptimizedModule": _compiled,
}


class _Plain:
    """State dicts in the place of modules, and dictionaries in that of other mappings.

    What lies in several places is made once, and names have a limit: a small file can put things into each other so
    that there are more names than any memory holds.
    """

    def __init__(self) -> None:
        self._made, self._letters = dict[tuple[int, int], Any](), 0

    def of(self, content: Any, levels: int) -> Any:
        """levels: of dictionaries that are looked through."""
        key = id(content), levels
        if key not in self._made:
            self._made[key] = self._of(content, levels)
        return self._made[key]

    def _of(self, content: Any, levels: int) -> Any:
        if isinstance(content, Inert) and {"_parameters", "_buffers", "_modules"} <= content.state.keys():
            return StateOfModule(dict(self._tensors(content, "")), type(content).__name__)
        if isinstance(content, Inert) and content.entries:
            content = content.entries
        if not isinstance(content, dict) or levels == 0:
            return content
        return {name: self.of(value, levels - 1) for name, value in content.items()}

    def _tensors(self, module: Inert, prefix: str) -> Iterator[tuple[str, Any]]:
        """By name, in the order of state_dict()."""
        _check_own(module, prefix)
        state = module.state
        passing = state.get("_non_persistent_buffers_set", ())
        buffers = {name: value for name, value in state["_buffers"].items() if name not in passing}
        for name, value in (state["_parameters"] | buffers).items():
            if value is not None:
                yield self._counted(prefix + name), value
        for name, inner in state["_modules"].items():
            if inner is not None:
                yield from self._tensors(inner, self._counted(f"{prefix}{name}."))

    def _counted(self, name: str) -> str:
        self._letters += len(name)
        if self._letters > _LETTERS:
            raise ValueError(f"the names of the tensors in its modules have more than {_LETTERS:,} letters together")
        return name


def _check_own(module: Inert, prefix: str) -> None:
    """Raises ValueError where the file tells that state_dict() gives something else than the module's dictionaries."""
    kind, name = type(module), prefix.rstrip(".") or "the module"
    if _PACKED.match(kind.__module__):
        raise ValueError(f"{name} is a quantised {kind.__name__}, which keeps its numbers in no tensor")
    if any(type(hook).__name__ != _HOOK for hook in module.state.get("_state_dict_hooks", {}).values()):
        raise ValueError(f"{name}, a {kind.__name__}, changes its state dict by a hook, which is never run")
