"""The graph of a network as the lines of a forward, with few names of variables that are used again."""

from collections.abc import Iterator, Mapping
from typing import Any

from compresskit.graph.source.layout import WIDTH, Brackets, Text, flat, lines, statement, steps
from compresskit.graph.source.modules import Modules
from compresskit.graph.source.values import IN_PLACE, arguments, function, value

Row = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_LONG = 60  # characters of a path that is given a name
_SIZES = ("size", "dim", "numel", "getattr")  # calls that give numbers
_NAMES = {True: "nmkhwij", False: "xyzuvabcdegpqrst"}  # of numbers, and of all else


def forward(rows: list[Row], modules: Modules, shapes: Shapes, indent: int) -> tuple[list[str], list[str]]:
    """The names of the inputs, and the statements. shapes: of a sample, by node, for comments."""
    return _Writer(rows, modules, shapes, indent).written()


class _Writer:
    def __init__(self, rows: list[Row], modules: Modules, shapes: Shapes, indent: int) -> None:
        self._rows, self._modules, self._shapes, self._indent = _read(rows), modules, shapes, indent
        self._left = self._readers()  # how often each node will be read yet
        self._text: dict[str, str] = {}  # what reads each node
        self._free = {kind: list(reversed(names)) for kind, names in _NAMES.items()}
        self._made, self._sizes = 0, set[str]()
        self._shown: tuple[int, ...] = ()

    def written(self) -> tuple[list[str], list[str]]:
        inputs, body = [], list[str]()
        for row in self._rows:
            if row["op"] == "placeholder":
                inputs.append(self._name(row))
            else:
                body += self._statement(row)
        return inputs, _joined(body)

    def _statement(self, row: Row) -> list[str]:
        if row["op"] == "get_attr":
            path = self._modules.read(row["target"])
            if len(path) > _LONG and self._left.get(row["name"]):
                return steps(path, self._indent, self._name(row))
            self._text[row["name"]] = path
            return []
        read = list(_nodes([row["args"], row["kwargs"]]))
        if row["op"] == "output":
            return lines(value(row["args"][0], self._named), self._indent, "return ")
        if self._updates(row):
            name, sign = self._text[read[0]], IN_PLACE[row["target"].removeprefix("operator.")]
            text: Text = value(row["args"][1], self._named)
            self._text[row["name"]] = name
            self._release(read, keep=name)
            return lines(text, self._indent, f"{name} {sign} ")
        first = self._in_training(row)
        text = self._call(row)
        self._release(read)
        before = f"{self._name(row)} = " if self._left.get(row["name"]) else ""
        return first + self._commented(row, statement(text, self._indent, before))

    def _call(self, row: Row) -> Text:
        args, kwargs, target = row["args"], row["kwargs"], row["target"]
        match row["op"]:
            case "call_function":
                return function(target, args, kwargs, self._named)
            case "call_method":
                receiver = flat(value(args[0], self._named))
                return Brackets(f"{receiver}.{target}(", arguments(args[1:], kwargs, self._named))
        if target in self._modules.outputs:
            return value(args[0], self._named)
        return Brackets(f"{self._modules.read(target)}(", arguments(args, kwargs, self._named))

    def _in_training(self, row: Row) -> list[str]:
        """Before the last call, what is returned in training mode, where that is something else."""
        other = row["args"][1:] or list(row["kwargs"].values())
        if row["op"] != "call_module" or row["target"] not in self._modules.outputs or other in ([], [None]):
            return []
        returned = lines(value(other[0], self._named), self._indent + 1, "return ")
        return [*lines("if self.training:", self._indent), *returned]

    def _updates(self, row: Row) -> bool:
        """Whether it is x += y of a variable that nothing reads any more."""
        home, _, name = str(row["target"]).rpartition(".")
        if row["op"] != "call_function" or home != "operator" or name not in IN_PLACE:
            return False
        first = row["args"][0]
        node = first["node"] if isinstance(first, dict) and "node" in first else ""
        other = list(_nodes(row["args"][1]))
        variable = self._text.get(node, "").isidentifier()
        return variable and self._left[node] == 1 and node not in other and bool(self._left.get(row["name"]))

    def _commented(self, row: Row, made: list[str]) -> list[str]:
        """With the shape of what it makes of N samples, where it changes and there is room."""
        shape = self._shapes.get(row["name"], ())
        if len(made) != 1 or len(shape) < 2 or shape[0] != 1 or shape == self._shown:
            return made
        comment = f"  # (N, {', '.join(map(str, shape[1:]))})"
        if len(made[0]) + len(comment) > WIDTH:
            return made
        self._shown = shape
        return [made[0] + comment]

    def _named(self, node: str) -> str:
        return self._text[node]

    def _name(self, row: Row) -> str:
        """A variable for what the node gives."""
        free = self._free[self._is_size(row)]
        if row["op"] == "placeholder" and len(self._inputs()) > 1:
            name = str(row["target"])
        elif free:
            name = free.pop()
        else:
            self._made += 1
            name = f"x{self._made}"
        self._text[row["name"]] = name
        return name

    def _is_size(self, row: Row) -> bool:
        """Whether it is a number, or several, that sizes of tensors make."""
        read = list(_nodes(row["args"]))
        made = str(row["target"]).startswith("operator.") and bool(read) and self._sizes.issuperset(read)
        if made or (row["target"] in _SIZES and row["op"] != "placeholder"):
            self._sizes.add(row["name"])
        return row["name"] in self._sizes

    def _inputs(self) -> list[Row]:
        return [row for row in self._rows if row["op"] == "placeholder"]

    def _release(self, read: list[str], keep: str = "") -> None:
        """Lets go of the variables that were read for the last time, the one that was read first to be taken next."""
        for node in read:
            self._left[node] -= 1
        for node in reversed(list(dict.fromkeys(read))):
            name = self._text[node]
            if not self._left[node] and name != keep:
                for kind, names in _NAMES.items():
                    if name in names and len(name) == 1:
                        self._free[kind].append(name)

    def _readers(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in self._rows:
            for node in _nodes([row["args"], row["kwargs"]]):
                counts[node] = counts.get(node, 0) + 1
        return counts


def _read(rows: list[Row]) -> list[Row]:
    """Without assertions, which torch's tracing leaves, and without what only they read."""
    kept, needed = list[Row](), set[str]()
    for row in reversed(rows):
        home, _, name = str(row["target"]).rpartition(".")
        size = row["target"] in _SIZES or (home == "operator" and name not in IN_PLACE)
        if row["target"] == "torch._assert" or (size and row["op"] != "placeholder" and row["name"] not in needed):
            continue
        needed.update(_nodes([row["args"], row["kwargs"]]))
        kept.append(row)
    return kept[::-1]


def _nodes(encoded: Any) -> Iterator[str]:
    """Names of the nodes that an argument reads, in their order."""
    if isinstance(encoded, list):
        for item in encoded:
            yield from _nodes(item)
    elif isinstance(encoded, dict):
        if isinstance(encoded.get("node"), str):
            yield encoded["node"]
        else:
            yield from _nodes(list(encoded.values()))


def _joined(body: list[str]) -> list[str]:
    """Without a variable that is made to be returned, where what makes it has room behind `return`."""
    if len(body) < 2:
        return body
    name = body[-1].strip().removeprefix("return ")
    before, equals, rest = body[-2].partition(" = ")
    joined = before.replace(name, "return ") + rest
    if not equals or before.strip() != name or len(joined) > WIDTH:
        return body
    return [*body[:-2], joined]
