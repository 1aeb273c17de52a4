"""The modules of a network as the lines that make them, in nested order, and as what reads them."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any

from torch import nn

from compresskit.graph.format.allowed import MODULES
from compresskit.graph.format.values import decode
from compresskit.graph.source.layout import Brackets, Text, lines, quoted, statement
from compresskit.graph.source.values import value

Table = dict[str, Any]

_RESERVED = ("from_file", "tie")  # methods of the written class
_PER_SIDE = ("kernel_size", "stride", "padding", "dilation", "output_padding")  # of convolutions
_HOLDER = "Module"
_EMPTY = nn.Module()


@dataclass
class Branch:
    """A module, and what is in it; one that only holds others has no layer of its own."""

    kind: str = _HOLDER
    options: Table = field(default_factory=dict)
    children: dict[str, "Branch"] = field(default_factory=dict)
    tensors: dict[str, Table] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        return bool(self.children) and list(self.children) == [str(n) for n in range(len(self.children))]


class Modules:
    """Of a table as `graph.format.table.to_table` makes it."""

    def __init__(self, table: Table) -> None:
        self.root = Branch()
        self.outputs = {path for path, spec in table["modules"].items() if spec["kind"] == "Outputs"}
        for path, spec in table["modules"].items():
            if path in self.outputs:
                continue  # what it does stands in forward
            owner, name = self._owner(path)
            owner.children[name] = Branch(spec["kind"], spec["options"])
        for path, spec in table["tensors"].items():
            owner, name = self._owner(path)
            owner.tensors[name] = spec

    @property
    def kinds(self) -> set[str]:
        return {branch.kind for _, branch in _walk(self.root)}

    def lines(self, indent: int) -> list[str]:
        """Statements of __init__."""
        made = []
        for name, child in self.root.children.items():
            if _is_plain(name):
                made += lines(_made(child), indent, f"self.{name} = ")
            else:
                made += lines(_made(child), indent, f"self._modules[{quoted(name)}] = ")
        for path, branch in _walk(self.root):
            for name, spec in branch.tensors.items():
                made += statement(_registered(self.read(path), name, spec), indent)
        return made

    def read(self, path: str) -> str:
        """The text that reads a module or tensor of the network; "" is the network itself."""
        text, branch = "self", self.root
        for name in path.split(".") if path else ():
            if branch is self.root or branch.kind != _HOLDER or name in branch.tensors:
                table = "_modules" if name in branch.children else _table(branch.tensors.get(name))
                text += f".{name}" if _is_plain(name) else f".{table}[{quoted(name)}]"
            elif branch.is_list:
                text += f"[{name}]"
            else:
                text += f".{name}" if _is_plain(name) else f"[{quoted(name)}]"
            branch = branch.children.get(name, Branch(""))
        return text

    def tied(self, shared: Sequence[Sequence[str]], indent: int) -> list[str]:
        """Statements that make one tensor of those that have several names."""
        return [
            line
            for first, *others in shared
            for other in others
            for line in lines(f"{self.read(other)} = {self.read(first)}", indent)
        ]

    def _owner(self, path: str) -> tuple[Branch, str]:
        *above, name = path.split(".")
        branch = self.root
        for part in above:
            branch = branch.children[part]
        return branch, name


def _walk(branch: Branch, path: str = "") -> Iterator[tuple[str, Branch]]:
    yield path, branch
    for name, child in branch.children.items():
        yield from _walk(child, f"{path}.{name}".removeprefix("."))


def _table(tensor: Table | None) -> str:
    return "_parameters" if tensor is not None and tensor["parameter"] else "_buffers"


def _is_plain(name: str) -> bool:
    """Whether it can be written behind a dot."""
    return name.isidentifier() and not iskeyword(name) and not hasattr(_EMPTY, name) and name not in _RESERVED


def _made(branch: Branch) -> Text:
    """The expression that makes a module, with those in it."""
    if branch.kind != _HOLDER:
        home = "nn." if MODULES[branch.kind].__module__.startswith("torch.") else ""
        return Brackets(f"{home}{branch.kind}(", _options(branch.kind, branch.options))
    inside = [(name, _made(child)) for name, child in branch.children.items()]
    if branch.is_list:
        return Brackets("nn.ModuleList(", [("", Brackets("[", [("", text) for _, text in inside], "]"))])
    if all(name.isidentifier() and not iskeyword(name) for name, _ in inside):
        return Brackets("Group(", [(f"{name}=", text) for name, text in inside])
    return Brackets("Group(", [("**", Brackets("{", [(f"{quoted(name)}: ", text) for name, text in inside], "}"))])


def _options(kind: str, options: Table) -> list[tuple[str, Text]]:
    """What must be said to the constructor: no defaults."""
    parameters = inspect.signature(MODULES[kind]).parameters
    given: list[tuple[str, Text]] = []
    positional = True
    for name, encoded in options.items():
        encoded = _short(kind, name, encoded)
        default = _RECURRENT.get(name, inspect.Parameter.empty)
        known = parameters[name].default if name in parameters else default
        if known is not inspect.Parameter.empty and _same(known, decode(encoded, {})):
            positional = False
            continue
        needed = name in parameters and known is inspect.Parameter.empty
        given.append(("" if positional and needed else f"{name}=", value(encoded, _no_node)))
        positional &= needed
    return given


# Of torch's recurrent layers, whose constructors take anything.
_RECURRENT: Mapping[str, Any] = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False, "proj_size": 0,
    "nonlinearity": "tanh",
}  # fmt: skip


def _short(kind: str, name: str, encoded: Any) -> Any:
    if kind.startswith("Conv") and name in _PER_SIDE and isinstance(encoded, dict):
        sides = encoded["tuple"]
        return sides[0] if len(set(sides)) == 1 else encoded
    return encoded


def _same(default: Any, given: Any) -> bool:
    return type(default) is type(given) and bool(default == given)


def _registered(owner: str, name: str, spec: Table) -> Text:
    """The statement that gives a module a tensor without values."""
    shape = ", ".join(map(str, spec["shape"])) or "()"
    dtype = "" if spec["dtype"] == "float32" else f", dtype=torch.{spec['dtype']}"
    empty = f"torch.empty({shape}{dtype})"
    if not spec["parameter"]:
        return Brackets(f"{owner}.register_buffer(", [("", quoted(name)), ("", empty)])
    fixed = [] if spec["dtype"].startswith(("float", "bfloat")) else [("", "False")]
    parameter = Brackets("nn.Parameter(", [("", empty), *fixed])
    return Brackets(f"{owner}.register_parameter(", [("", quoted(name)), ("", parameter)])


def _no_node(name: str) -> str:
    raise AssertionError(f"an option of a module reads the node {name}")
