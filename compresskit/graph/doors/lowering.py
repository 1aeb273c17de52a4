"""An exported program as a graph of torch's functions, methods and layers, on the tensors of its module."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors import aten
from compresskit.graph.doors.opaque import Call, places
from compresskit.graph.doors.symbolic import check_names

_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # whose body is all that is computed


def lowered(program: ExportedProgram, module: nn.Module, calls: Sequence[Call]) -> fx.GraphModule:
    """The graph of `program` with one input and the structure that forward returns.

    Its tensors are those of `module`, its layers those of `calls`.

    Raises UnsupportedModelError for an operation that has no row in `aten`, by its name, for a buffer that forward
    writes.
    """
    return _Lowering(program, module, calls).run()


class _Lowering:
    """Copies node by node. _values: by node of the program a node of the new graph, a number, or a tensor that depends
    on neither input nor weights; those that the graph reads become its buffers. _held: modules and tensors by path."""

    def __init__(self, program: ExportedProgram, module: nn.Module, calls: Sequence[Call]) -> None:
        self._program, self._module, self._calls = program, module, calls
        self._graph = fx.Graph()
        self._values: dict[fx.Node, Any] = {}
        self._held: dict[str, Any] = {}
        self._constants: list[tuple[Tensor, str]] = []
        self._scope = ""
        self._input = self._graph.placeholder("x")
        self._input.meta["scope"] = ""

    def run(self) -> fx.GraphModule:
        self._place_inputs()
        outputs = self._body(self._program.graph_module)
        self._graph.output(pytree.tree_unflatten(self._read(list(outputs)), self._program.call_spec.out_spec))
        for node in reversed(list(self._graph.nodes)):
            if not node.users and (node.op == "get_attr" or node.target in ("size", getattr, operator.getitem)):
                self._graph.erase_node(node)
        check_names(self._graph)
        read = [str(node.target) for node in self._graph.nodes if node.op in ("call_module", "get_attr")]
        held = {path: self._held[path] for path in read}
        return fx.GraphModule(held, self._graph, type(self._module).__name__)

    def _place_inputs(self) -> None:
        signature = self._program.graph_signature
        if changed := list(signature.buffers_to_mutate.values()):
            raise UnsupportedModelError(f"forward changes the buffer {changed[0]} in eval mode")
        nodes = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        pairs = list(zip(nodes, signature.input_specs, strict=True))
        inputs = [node for node, spec in pairs if spec.kind is InputKind.USER_INPUT]
        for place, node in enumerate(inputs):
            self._values[node] = self._input if len(inputs) == 1 else self._make(operator.getitem, self._input, place)
        for node, spec in pairs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self._values[node] = self._weight(str(spec.target), bool(spec.persistent))
            elif spec.kind is not InputKind.USER_INPUT:
                self._values[node] = self._program.constants[str(spec.target)]

    def _weight(self, name: str, persistent: bool) -> Any:
        """Tables of indices and what no state dict holds are constants; the others are read by name."""
        path, _, attribute = name.rpartition(".")
        tensor: Tensor = getattr(self._module.get_submodule(path), attribute)
        if not isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() and persistent):
            self._constants.append((tensor, name))
            self._held[name] = tensor
            return tensor
        self._held[name] = tensor
        return self._get(name)

    def _body(self, holder: nn.Module) -> Sequence[Any]:
        """Runs over the nodes of a graph whose placeholders have values; gives its outputs."""
        assert isinstance(holder, fx.GraphModule)
        for node in holder.graph.nodes:
            if node.op == "output":
                found = self._mapped(node.args[0])
                return found if isinstance(found, list | tuple) else [found]
            if node.op == "get_attr":
                self._values[node] = getattr(holder, str(node.target))
            elif node.op == "call_function":
                self._scope = _scope(node)
                self._values[node] = self._call(node)
        return []

    def _call(self, node: fx.Node) -> Any:
        if str(node.target) in _REGIONS:
            return self._region(node)
        args, kwargs = self._mapped(node.args), self._mapped(node.kwargs)
        if node.target is torch.ops.compresskit.layer.default:
            return self._layer(node, *args)
        if node.target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if (made := aten.constant(node, args, kwargs)) is not None:
            return made
        if not any(isinstance(leaf, fx.Node) for leaf in _leaves((args, kwargs))) and callable(node.target):
            with torch.no_grad():
                return node.target(*args, **kwargs)
        args, kwargs = self._read(args), self._read(kwargs)
        return aten.translate(aten.Place(node, self._make, self._add_module, self._input), args, kwargs)

    def _region(self, node: fx.Node) -> Any:
        """The body of a region with switched gradients or without lower precision, as if it were written here."""
        place = next(i for i, arg in enumerate(node.args) if isinstance(self._mapped(arg), fx.GraphModule))
        body = self._mapped(node.args[place])
        given = node.args[place + 1 :]
        inner = (n for n in body.graph.nodes if n.op == "placeholder")
        self._values |= {own: self._mapped(value) for own, value in zip(inner, given, strict=True)}
        return self._body(body)

    def _layer(self, node: fx.Node, inputs: Sequence[Any], number: int) -> list[Any]:
        """The call of a layer: the list of the tensors of its result."""
        call = self._calls[number]
        args, kwargs = call.bound(self._read(list(inputs)))
        self._scope = call.path.rpartition(".")[0]
        self._held[call.path] = self._module.get_submodule(call.path)
        made = self._graph.call_module(call.path, args, kwargs)
        made.meta |= {"scope": self._scope, "val": node.meta["val"][0]}
        found = []
        for keys in places(call):
            value = made
            for key in keys:
                value = self._make(operator.getitem, value, key)
            found.append(value)
        return found

    def _make(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call: of a method where the target is a name."""
        create: Any = self._graph.call_method if isinstance(target, str) else self._graph.call_function
        made: fx.Node = create(target, args, kwargs)
        made.meta["scope"] = self._scope
        return made

    def _add_module(self, name: str, module: nn.Module, *args: Any) -> fx.Node:
        path = f"{self._scope}.{name}".removeprefix(".")
        taken = {known for known, _ in self._module.named_modules()} | self._held.keys()
        while path in taken:
            path += "_"
        self._held[path] = module
        made = self._graph.call_module(path, args)
        made.meta["scope"] = self._scope
        return made

    def _get(self, name: str) -> fx.Node:
        node = self._graph.get_attr(name)
        node.meta["scope"] = ""
        return node

    def _read(self, value: Any) -> Any:
        """With nodes in the places of constant tensors."""
        return _map(value, lambda leaf: self._constant(leaf) if isinstance(leaf, Tensor) else leaf)

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = next((name for known, name in self._constants if known is tensor), None)
        if name is None:
            name = f"_tensor_constant{len(self._constants)}"  # as torch.fx calls them
            self._constants.append((tensor, name))
            self._held[name] = tensor.detach().clone()
        return self._get(name)

    def _mapped(self, value: Any) -> Any:
        return _map(value, lambda leaf: self._values[leaf] if isinstance(leaf, fx.Node) else leaf)


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested lists, tuples, dicts and slices with every leaf changed."""
    if isinstance(value, list | tuple):
        items = [_map(item, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_map(item, change) for item in (value.start, value.stop, value.step)))
    return change(value)


def _leaves(value: Any) -> Iterable[Any]:
    found: list[Any] = []
    _map(value, found.append)
    return found


def _scope(node: fx.Node) -> str:
    """The path of the submodule whose forward made the call."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    last = paths[-1] if paths else ""
    return "" if last.startswith("_empty") else last.partition("@")[0]
