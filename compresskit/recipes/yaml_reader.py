"""YAML text to plain values that remember their line, and back. Home of yaml.

Scalars are typed by the core schema of YAML 1.2, less its octal and hexadecimal integers: `1e-3` is a number; only
true, false and null have a meaning, so `no`, `on` and `yes` are text; so are `12:30`, `2020-01-01` and `010`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import yaml

from compresskit.recipes.problems import Problem

Scalar = str | int | float | bool | None


@dataclass
class Node:
    """A value of a recipe and the line it stands on; line None: it came from the command line.

    inherited: it is that of another section, where its mistakes are told.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    line: int | None = None
    inherited: bool = False

    def plain(self) -> Any:
        """The value without lines: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


class UnreadableError(Exception):
    """The text cannot be made into values at all; carries the one problem found."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def read_text(path: Path) -> str:
    """Text of the file at `path`. Raises UnreadableError if it is missing, a folder or not UTF-8."""
    content = b""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):  # to read a pipe or a device may have no end
            raise UnreadableError(Problem("is no file but a pipe or a device; name a recipe file"))
        if status.st_size > _BYTES:
            raise UnreadableError(Problem(f"has {status.st_size:,} bytes, at most {_BYTES:,} are allowed; shorten it"))
        content = path.read_bytes()
        return content.decode("utf-8")
    except FileNotFoundError as error:
        raise UnreadableError(Problem("no such file")) from error
    except IsADirectoryError as error:
        raise UnreadableError(Problem("is a folder; name the recipe file in it")) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError(Problem("not UTF-8 text; save the file as UTF-8", line)) from error
    except OSError as error:
        raise UnreadableError(Problem(f"cannot be read: {error.strerror}")) from error


def read_yaml(text: str) -> tuple[Node, list[Problem]]:
    """The values in `text`, and the keys that are repeated. Raises UnreadableError if it is no YAML or holds a tag."""
    reader = _Reader()
    try:
        root = yaml.compose(text, Loader=_Loader)
        return (reader.read(root, ()) if root else Node(None, 1)), reader.problems
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UnreadableError(Problem(_syntax(error.problem or "syntax error"), line)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(Problem(f"not valid YAML: the character U+{error.character:04X}", line)) from error
    except RecursionError as error:
        raise UnreadableError(Problem("not valid YAML: nested too deeply", 1)) from error


def to_yaml(data: dict[str, Any]) -> str:
    """Text from which `read_yaml` gives `data` again; every string that YAML 1.1 or 1.2 could mistake is quoted."""
    style: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": False, "width": 120}
    text: str = yaml.dump(data, Dumper=_Dumper, **style)
    return text


_BYTES = 2**18  # of a recipe
_VALUES = 20_000  # of a recipe, those of an alias counted wherever it is used
_DEPTH = 100  # levels of lists and mappings; far below what the recursions here and in build.py bear
_TAG = "tag:yaml.org,2002:"


_SCALARS: dict[str, tuple[str, str, Callable[[str], Scalar]]] = {  # tag: pattern, first characters, conversion
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: {"true": True, "false": False}[text.lower()]),
    "null": (r"~|null|Null|NULL|", "~nN", lambda text: None),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789", int),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    ),
    "str": ("", "", str),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # none of YAML 1.1's: ours are added below


class _Dumper(yaml.SafeDumper):  # keeps YAML 1.1's resolvers beside ours, so that other tools read the same
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: _Dumper, data: str) -> yaml.ScalarNode:
    breaks = any(mark in data for mark in "\x85\u2028\u2029")  # escaped, or a reader would take them for spaces
    return dumper.represent_scalar(_TAG + "str", data, style='"' if breaks else None)


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.SequenceNode:
    flat = not any(isinstance(item, dict | list) for item in data)
    return dumper.represent_sequence(_TAG + "seq", data, flow_style=flat)


for _tag, (_pattern, _first, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _characters = [*_first, ""] if _tag == "null" else list(_first)
        _class.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _characters)
_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(list, _represent_list)


class _Reader:
    """Turns yaml's nodes into ours; an alias is read anew wherever it is used."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._read = 0
        self._open: set[int] = set()  # nodes being read: meeting one again is an alias inside itself

    def read(self, node: yaml.Node, key: tuple[str | int, ...]) -> Node:
        if id(node) in self._open:
            raise _refusal(node, "an alias stands inside what it names")
        if len(self._open) == _DEPTH:
            raise _refusal(node, "nested too deeply")
        self._read += 1
        if self._read > _VALUES:
            raise _refusal(node, f"more than {_VALUES:,} values, counting those of aliases each time; leave some out")
        self._open.add(id(node))
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            result = Node(self._mapping(node, key), line)
        elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            result = Node([self.read(item, (*key, index)) for index, item in enumerate(node.value)], line)
        else:
            result = Node(_scalar(node), line)
        self._open.remove(id(node))
        return result

    def _mapping(self, node: yaml.MappingNode, key: tuple[str | int, ...]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(key_node, "a key must be text, not a list or a mapping")
            name, line = key_node.value, key_node.start_mark.line + 1
            if name == "<<" and key_node.style is None:
                for source in _merge_sources(value_node):
                    merged = {**self.read(source, key).value, **merged}  # type: ignore[dict-item]
            elif name in own:
                self.problems.append(Problem(f"given twice, first on line {own[name].line}", line, (*key, name)))
            else:
                own[name] = Node(self.read(value_node, (*key, name)).value, line)
        return {**merged, **own}


def _merge_sources(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    """The mappings that a merge key `<<` names, the first of which wins."""
    for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(source, yaml.MappingNode):
            raise _refusal(source, "'<<' takes a mapping or a list of mappings")
        yield source


def _scalar(node: yaml.Node) -> Scalar:
    name = node.tag.removeprefix(_TAG)
    if not isinstance(node, yaml.ScalarNode) or name not in _SCALARS:
        raise _refusal(node, f"the tag '{node.tag.replace(_TAG, '!!')}' is not allowed; recipes are plain data")
    try:
        return _SCALARS[name][2](node.value)
    except (ValueError, KeyError) as error:
        raise _refusal(node, f"'{node.value[:40]}' cannot be read as {name}") from error


def _refusal(node: yaml.Node, text: str) -> UnreadableError:
    return UnreadableError(Problem(text, node.start_mark.line + 1))


def _syntax(problem: str) -> str:
    if r"'\t'" in problem:
        return "not valid YAML: a tab; indent with spaces"
    remedy = "; put the text in quotes" if "cannot start any token" in problem else ""
    return f"not valid YAML: {problem}{remedy}"
