"""The source of layers of our own, with all that it reads, so that a file can hold them without this package."""

import ast
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

_OWN = "compresskit."


@dataclass
class Bundle:
    """imports: (module, name), with no name for `import module`. pieces: of source, by name, in their order."""

    imports: set[tuple[str, str]] = field(default_factory=set)
    pieces: dict[str, str] = field(default_factory=dict)

    def add(self, objects: Iterable[type | object]) -> None:
        """Classes and functions at the top of modules of this package."""
        for wanted in objects:
            self._add(sys.modules[wanted.__module__], str(getattr(wanted, "__name__", "")))

    def _add(self, module: ModuleType, name: str) -> None:
        """What is called so in a module: a definition or an import."""
        source = _read(module)
        if name in source.imports:
            self._import(*source.imports[name])
            return
        piece = source.pieces.get(name)
        if piece is None or self.pieces.get(name) == piece.text:
            return
        assert name not in self.pieces, f"two pieces of source are called {name}"
        self.pieces[name] = piece.text
        for other in piece.reads:
            self._add(module, other)
        self.pieces[name] = self.pieces.pop(name)  # behind what it reads

    def _import(self, home: str, name: str) -> None:
        if home.startswith(_OWN):
            self._add(sys.modules[home], name)
        else:
            self.imports.add((home, name))


@dataclass(frozen=True)
class _Piece:
    text: str
    reads: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    imports: dict[str, tuple[str, str]]
    pieces: dict[str, _Piece]


@cache
def _read(module: ModuleType) -> _Source:
    """The imports and definitions at the top of a module, by the names that they give."""
    text = inspect.getsource(module)
    imports: dict[str, tuple[str, str]] = {}
    pieces: dict[str, _Piece] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.ImportFrom):
            bound = {alias.asname or alias.name: alias for alias in statement.names}
            imports |= {
                name: (str(statement.module), alias.name + (f" as {alias.asname}" if alias.asname else ""))
                for name, alias in bound.items()
            }
        elif isinstance(statement, ast.Import):
            imports |= {alias.asname or alias.name: (alias.name, "") for alias in statement.names}
        else:
            reads = tuple(dict.fromkeys(n.id for n in ast.walk(statement) if isinstance(n, ast.Name)))
            pieces |= dict.fromkeys(_given(statement), _Piece(_lines(text, statement), reads))
    return _Source(imports, pieces)


def _given(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _lines(text: str, statement: ast.stmt) -> str:
    """With decorators, and with comments inside."""
    first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : statement.end_lineno])
