"""A network as plain data, and back: nodes and modules by name, out of closed lists, the tensors apart.

torch.fx writes Python source from a graph, names and targets as they are; so whatever a file says is checked first.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import CheckpointError, UnsupportedModelError, near_names
from compresskit.graph.format.allowed import ATTRIBUTES, CONSTANTS, FUNCTIONS, METHODS, MODULES
from compresskit.graph.format.values import decode, encode

Table = dict[str, Any]

_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FUNCTION_NAMES = {function: name for name, function in FUNCTIONS.items()}
_KINDS = {module: kind for kind, module in MODULES.items()}

_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")

# Options that a module does not keep as an attribute of the same name.
_BIASES = {"add_bias_kv": ("bias_k",), "bias": ("in_proj_bias", "bias")}


def to_table(network: fx.GraphModule) -> Table:
    """Nodes, modules and tensors (shapes and types only) of `network`, as JSON could hold them.

    Raises UnsupportedModelError for a module, call or value that is not in the closed lists, by its name.
    """
    modules = {path: module for path, module in _walk(network) if path}
    return {
        "nodes": [_to_row(node, modules) for node in network.graph.nodes],
        "modules": {path: _to_spec(path, module) for path, module in modules.items()},
        "tensors": {name: _describe(tensor) for name, tensor in _held_by_containers(network)},
    }


def from_table(table: Table) -> fx.GraphModule:
    """The network that the table describes, in eval mode, its tensors without values (on torch's meta device).

    Runs no code that the table could bring along. Raises CheckpointError for what is damaged or in no closed list.
    """
    try:
        network = fx.GraphModule(nn.Module(), fx.Graph())
        with torch.device("meta"):
            for path, spec in table["modules"].items():
                _add_module(network, path, spec)
            for path, spec in table["tensors"].items():
                _add_tensor(network, path, spec)
        network.graph = _graph(table, {name for name, _ in named_tensors(network)})
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"its graph is damaged ({error}); take another copy of the file") from error
    return network.eval()


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by each of its names, in the order of the modules."""
    for path, module in network.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield f"{path}.{name}".removeprefix("."), tensor


def tensor_of(network: nn.Module, name: str) -> Any:
    """The parameter or buffer of that name."""
    path, _, attribute = name.rpartition(".")
    return getattr(network.get_submodule(path), attribute)


def shared_tensors(network: nn.Module) -> list[list[str]]:
    """The names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(network):
        names.setdefault(id(tensor), []).append(name)
    return [own for own in names.values() if len(own) > 1]


def shared_names(network: nn.Module) -> set[str]:
    return {name for own in shared_tensors(network) for name in own}


def _walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The module and those below it, down to the layers, whose own submodules come with their kind."""
    yield path, module
    if _is_container(module):
        for name, child in module._modules.items():
            if child is not None:
                yield from _walk(child, f"{path}.{name}".removeprefix("."))


def _is_container(module: nn.Module) -> bool:
    return type(module) is nn.Module or isinstance(module, fx.GraphModule)


def _held_by_containers(network: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    for path, module in _walk(network):
        if _is_container(module):
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    yield f"{path}.{name}".removeprefix("."), tensor


def _to_row(node: fx.Node, modules: Mapping[str, nn.Module]) -> Table:
    scope = str(node.meta.get("scope", ""))
    where = f"node {node.name}" + (f" in {scope}" if scope else "")
    target = node.target
    if callable(target):
        name = f"{getattr(target, '__module__', None)}.{getattr(target, '__name__', target)}"
        if target not in _FUNCTION_NAMES:
            raise UnsupportedModelError(f"{where}: {_refusal('functions', name, FUNCTIONS)}")
        target = _FUNCTION_NAMES[target]
    try:
        args, kwargs = encode(list(node.args)), {key: encode(value) for key, value in node.kwargs.items()}
    except ValueError as error:
        raise UnsupportedModelError(f"{where}: a checkpoint cannot hold its argument {error}") from error
    row = {"op": node.op, "name": node.name, "target": target, "args": args, "kwargs": kwargs, "scope": scope}
    if problem := _problem(row, modules):
        raise UnsupportedModelError(f"{where}: {problem}")
    return row


def _to_spec(path: str, module: nn.Module) -> Table:
    kind = _KINDS.get(nn.Module if _is_container(module) else type(module))
    if kind is None:
        raise UnsupportedModelError(f"{path}: {_refusal('modules', type(module).__name__, MODULES)}")
    if not _is_path(path):
        raise UnsupportedModelError(f"{path!r}: name submodules with letters, digits, '_' and '-' only")
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedModelError(f"{path}: it has a forward hook, which a checkpoint cannot hold; remove the hook")
    try:
        return {"kind": kind, "options": {name: encode(_option(module, name)) for name in _option_names(module)}}
    except ValueError as error:
        raise UnsupportedModelError(f"{path}: a checkpoint cannot hold its option {error}") from error


def _option_names(module: nn.Module) -> list[str]:
    """What the constructor takes and the module still knows, which leaves out the deprecated synonyms."""
    names = [name for name in _signature(type(module)) if name in _BIASES or hasattr(module, name)]
    return names if type(module) in _KINDS and not _is_container(module) else []


def _signature(kind: type[nn.Module]) -> list[str]:
    if issubclass(kind, nn.RNNBase):  # whose constructors take anything
        return [*_RECURRENT, *(["proj_size"] if kind is nn.LSTM else []), *(["nonlinearity"] if kind is nn.RNN else [])]
    parameters = inspect.signature(kind).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [name for name in named if name not in ("device", "dtype") and not name.startswith("_")]


def _option(module: nn.Module, name: str) -> Any:
    for attribute in _BIASES.get(name, ()):
        if hasattr(module, attribute) and not isinstance(module, nn.RNNBase):
            return getattr(module, attribute) is not None
    return getattr(module, name)


def _describe(tensor: Tensor) -> Table:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"parameter": isinstance(tensor, nn.Parameter), "shape": list(tensor.shape), "dtype": dtype}


def _add_module(network: fx.GraphModule, path: str, spec: Table) -> None:
    kind = spec["kind"]
    if kind not in MODULES:
        raise CheckpointError(f"{path}: {_refusal('modules', kind, MODULES)}")
    options = _of_this_torch(kind, spec["options"])
    if unknown := set(options) - set(_signature(MODULES[kind])):
        raise CheckpointError(f"{path}: {_refusal(f'options of {kind}', min(unknown), _signature(MODULES[kind]))}")
    module = MODULES[kind](**{name: decode(value, {}) for name, value in options.items()})
    if not _is_path(path) or not network.add_submodule(path, module):
        raise ValueError(f"{path!r} is no path of a module")


def _of_this_torch(kind: str, options: Table) -> Table:
    """Without the `bias` of a norm where torch does not have it yet, and it says what that torch does: as `affine`."""
    if "bias" in options and "bias" not in _signature(MODULES[kind]) and options["bias"] == options.get("affine"):
        return {name: value for name, value in options.items() if name != "bias"}
    return options


def _add_tensor(network: fx.GraphModule, path: str, spec: Table) -> None:
    owner, _, name = path.rpartition(".")
    tensor = torch.empty(spec["shape"], dtype=CONSTANTS[spec["dtype"]])
    if not _is_path(path):
        raise ValueError(f"{path!r} is no name of a tensor")
    if spec["parameter"]:
        network.get_submodule(owner).register_parameter(name, nn.Parameter(tensor, tensor.is_floating_point()))
    else:
        network.get_submodule(owner).register_buffer(name, tensor)


def _graph(table: Table, tensors: set[str]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    ops = [row["op"] for row in table["nodes"]]
    if ops.count("placeholder") != 1 or ops[0] != "placeholder" or ops.count("output") != 1 or ops[-1] != "output":
        raise ValueError("it does not lead from one input to one output")
    for row in table["nodes"]:
        name, target, kwargs = row["name"], row["target"], row["kwargs"]
        problem = _problem(row, table["modules"])
        if row["op"] == "get_attr" and target not in tensors:
            problem = _refusal("tensors", target, tensors)
        if problem:
            raise CheckpointError(f"node {name}: {problem}")
        decoded = {key: decode(value, nodes) for key, value in kwargs.items()}
        target = FUNCTIONS[target] if row["op"] == "call_function" else target
        node = graph.create_node(row["op"], target, tuple(decode(row["args"], nodes)), decoded, name)
        if node.name != name:
            raise ValueError(f"{name!r} is no name for a node")
        node.meta["scope"] = str(row["scope"])
        nodes[name] = node
    return graph


def _problem(row: Table, modules: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, be it about to be written or just read."""
    op, target, args = row["op"], row["target"], row["args"]
    if not all(map(_is_identifier, [row["name"], *row["kwargs"]])):
        return f"{row['name']!r} or one of {list(row['kwargs'])} is no plain name"
    match op:
        case "call_function" if target == "getattr":
            attribute = args[1] if len(args) == 2 and _is_node(args[0]) else None
            return None if attribute in ATTRIBUTES else _refusal("attributes", attribute, ATTRIBUTES)
        case "call_function":
            return None if target in FUNCTIONS else _refusal("functions", target, FUNCTIONS)
        case "call_method":
            fine = target in METHODS and args and _is_node(args[0])
            return None if fine else _refusal("methods of tensors", target, METHODS)
        case "call_module":
            return None if target in modules else _refusal("modules of this network", target, modules)
        case "placeholder":
            return None if _is_identifier(target) and not args else f"{target!r} is no plain name for the input"
        case "output":
            return None if target == "output" and len(args) == 1 and _is_node(args[0]) else "the output is no node"
        case "get_attr":
            return None if isinstance(target, str) and _is_path(target) else f"{target!r} is no name of a tensor"
    return _refusal("operations", op, ("call_function", "call_method", "call_module", "get_attr"))


def _is_identifier(name: Any) -> bool:
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not iskeyword(name) and name != "self"


def _is_path(path: str) -> bool:
    return bool(_PATH.fullmatch(path)) and not any(map(iskeyword, path.split(".")))


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "node" in value


def _refusal(what: str, name: Any, known: Any) -> str:
    return f"asks for {name!r}, which is not in the list of allowed {what}; {near_names(str(name), known)}"
