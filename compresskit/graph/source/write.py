"""A network as a Python file that needs torch alone: one class, whose weights lie in a file beside it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from compresskit.errors import UnsupportedModelError
from compresskit.graph.format.allowed import FUNCTIONS, MODULES
from compresskit.graph.format.table import shared_tensors, to_table
from compresskit.graph.format.values import encode
from compresskit.graph.source import plain
from compresskit.graph.source.bundle import Bundle
from compresskit.graph.source.forward import forward
from compresskit.graph.source.layout import lines, quoted
from compresskit.graph.source.modules import Modules
from compresskit.graph.source.reading import READING
from compresskit.graph.source.values import value

_OTHERS = {"GroupedStack": plain.GroupedStack}  # in the place of those of the package
_OWN = "compresskit."

_GROUP = '''
class Group(nn.Module):
    """Modules by name; names that are none in Python stand in brackets."""

    def __init__(self, /, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getitem__(self, name):
        return self._modules[name]
'''
_CLASS = '''
class Net(nn.Module):
    """{takes}"""

    def __init__(self):
        super().__init__()
'''
_TIE = '''
    def tie(self):
        """Makes one tensor of those that have several names."""
'''
_FROM_FILE = '''
    @classmethod
    def from_file(cls, path=WEIGHTS):
        """The network in eval mode, with its weights."""
        with torch.device("meta"):
            net = cls()
        net.load_state_dict(read_tensors(path), assign=True)
        return net.eval()
'''


def written(
    network: fx.GraphModule,
    weights: str,
    title: str,
    takes: str,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Any],
) -> str:
    """The text of the file, which formatters leave as it is.

    network: with an argument for each input. weights: name of the file beside it, in safetensors. title, takes: lines
    for the reader, of plain words. shapes: by node, of a batch of one. constants: by name, plain values to know beside.
    Whatever comes from a checkpoint is of the closed lists, a checked name, or a quoted text.
    """
    table = to_table(network)
    modules = Modules(table)
    inputs, body = forward(table["nodes"], modules, shapes, 2)
    bundle = _layers(modules.kinds, table["nodes"])
    tied = modules.tied(shared_tensors(network), 2)
    made = modules.lines(2)
    head = [
        f'"""{title}\n\n{_usage(weights)}\n"""',
        _imports(bundle, [*made, *body]),
        "\n".join([f"WEIGHTS = Path(__file__).with_name({quoted(weights)})", *_constants(constants)]),
    ]
    text = "\n\n".join(head) + "\n\n" + READING
    if bundle.pieces:
        text += "\n\n# fmt: off\n" + "\n\n\n".join(bundle.pieces.values()) + "\n# fmt: on\n"
    if any("Group(" in line for line in made):
        text += "\n" + _GROUP
    text += "\n" + _CLASS.format(takes=takes) + "\n".join(made)
    text += "\n        self.tie()" if tied else ""
    text += f"\n\n    def forward(self, {', '.join(inputs)}):\n" + "\n".join(body) + "\n"
    if not tied:
        return text + _FROM_FILE
    text += _TIE + "\n".join(tied) + "\n"
    return text + _FROM_FILE.replace("        return net", "        net.tie()\n        return net")


def _usage(weights: str) -> str:
    """weights: whose name may hold anything."""
    module = weights.removesuffix(".safetensors")
    return f"from {module if module.isidentifier() else 'net'} import Net; network = Net.from_file()"


def _layers(kinds: Iterable[str], rows: Sequence[dict[str, Any]]) -> Bundle:
    """The sources of what is no part of torch."""
    if "Expanded" in kinds:
        raise UnsupportedModelError(
            "expanded layers are for training; multiply them back first: expand, stage contract"
        )
    bundle = Bundle()
    own = [kind for kind in sorted(kinds) if _OWN in MODULES[kind].__module__]
    bundle.add(_OTHERS.get(kind, MODULES[kind]) for kind in own)
    called = {row["target"] for row in rows if row["op"] == "call_function" and "." not in row["target"]}
    bundle.add(FUNCTIONS[name] for name in sorted(called - {"getattr"}))
    return bundle


def _imports(bundle: Bundle, body: Sequence[str]) -> str:
    """Sorted as formatters sort them: the standard library, then torch."""
    found = bundle.imports | {("json", ""), ("pathlib", "Path"), ("torch", ""), ("torch", "nn")}
    text = "\n".join(body)
    found |= {("operator", "")} if "operator." in text else set()
    found |= {("torch.nn", "functional as F")} if "F." in text else set()
    blocks = []
    for of_torch in (False, True):
        here = [one for one in found if (one[0].split(".")[0] == "torch") == of_torch]
        blocks.append("\n".join([*sorted(f"import {home}" for home, name in here if not name), *_from(here)]))
    return "\n\n".join(blocks)


def _from(imports: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each module, and for each name that is another one here."""
    lists: dict[tuple[str, str], list[str]] = {}
    for home, name in imports:
        if name:
            lists.setdefault((home, name if " as " in name else ""), []).append(name)
    return [f"from {home} import {', '.join(sorted(names, key=_order))}" for (home, _), names in sorted(lists.items())]


def _order(name: str) -> tuple[int, str]:
    """Constants, classes, functions."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def _constants(constants: Mapping[str, Any]) -> list[str]:
    return [line for name, given in constants.items() for line in lines(value(encode(given), str), 0, f"{name} = ")]
