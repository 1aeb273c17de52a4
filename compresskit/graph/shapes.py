"""What a network does with one sample: what it can be called with, eval mode for a while, the shape of every value."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.layers.outputs import Outputs
from compresskit.graph.layers.plain import known_shape
from compresskit.graph.layers.sample_shape import SampleShape
from compresskit.graph.operations import ELEMENTWISE_MODULES, NORMS, SPATIAL_MODULES, called
from compresskit.shapes import Shape, shapes_of

_WHOLE = frozenset({"long", "int", "to"})  # calls that make whole numbers of the input
_CHOOSING = frozenset({"getitem", "clamp"})  # calls behind which not all numbers of the input are as they were
_PASSING = _WHOLE | _CHOOSING | frozenset({"view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous"})
_CANNOT_RUN = (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextmanager
def evaluating(network: nn.Module, *, training_outputs: bool = False) -> Iterator[None]:
    """Eval mode inside the block; each submodule gets its own mode back after it.

    training_outputs: of a network that returns something else in training mode, that is returned all the same: what its
    loss reads, and what networks are compared by.
    """
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = training_outputs and isinstance(module, Outputs)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Tokens:
    """Of a network whose input is looked up in tables. layer: that looks it up. count: entries that all tables have.
    whole: whether forward makes whole numbers of the input itself. all: whether every number of the input is looked up
    as it is, in each table."""

    layer: str
    count: int
    whole: bool
    all: bool


def tokens(network: fx.GraphModule, place: int | None = None) -> Tokens | None:
    """What the network's input is looked up in; None where no embedding reads it.

    place: of a network whose input is a tuple, which of its tensors is meant.
    """
    found = []
    for node in network.graph.nodes:
        entries = _entries(network, node)
        source, calls = (node.args[0] if node.args else None), set[str]()
        while isinstance(source, fx.Node) and _passes(network, source) and not _is_input(source, place):
            calls.add(called(source))
            source = source.args[0]
        if entries and isinstance(source, fx.Node) and _is_input(source, place):
            layer = str(node.target if node.op == "call_module" else node.name)
            found.append(Tokens(layer, entries, bool(calls & _WHOLE), not calls & _CHOOSING))
    if not found:
        return None
    smallest = min(found, key=lambda one: one.count)
    return replace(smallest, whole=all(one.whole for one in found), all=all(one.all for one in found))


def _passes(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it hands on the numbers that it is given first."""
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), SampleShape | nn.Identity)
    return node.op != "placeholder" and called(node) in _PASSING


def _is_input(node: fx.Node, place: int | None) -> bool:
    if place is None:
        return node.op == "placeholder"
    return is_part(node, place)


def is_part(node: fx.Node, place: object) -> bool:
    """Whether it is the tensor at this place of a network's input."""
    of_input = called(node) == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
    return of_input and bool(node.args[1] == place)


def _entries(network: fx.GraphModule, node: fx.Node) -> int:
    """Of the table that the node looks something up in; 0 where it does not."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return module.num_embeddings if isinstance(module, nn.Embedding) else 0
    if node.op == "call_function" and called(node) == "embedding":
        table = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        if isinstance(table, fx.Node) and table.op == "get_attr":
            return len(network.get_parameter(str(table.target)))
    return 0


def example(
    network: fx.GraphModule, input_shape: Shape, count: int = 1, generator: torch.Generator | None = None
) -> Any:
    """A batch that the network can be called with, in the type and on the device of its parameters.

    Zeros, or with a generator (of the CPU) normal numbers; where the network reads tokens, such as its tables have.
    A tuple of tensors where the shape is one of shapes.
    """
    shapes = shapes_of(input_shape)
    if len(shapes) == 1:
        return _example(network, tokens(network), (count, *shapes[0]), generator)
    made = [_example(network, tokens(network, n), (count, *shape), generator) for n, shape in enumerate(shapes)]
    return tuple(made)


def _example(
    network: fx.GraphModule, looked_up: Tokens | None, shape: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    parameter = next(network.parameters(), torch.empty(0))
    if looked_up is None:
        dtype = parameter.dtype
        made = torch.zeros(shape) if generator is None else torch.randn(shape, generator=generator)
    else:
        dtype = parameter.dtype if looked_up.whole else torch.int64
        made = torch.zeros(shape) if generator is None else torch.randint(looked_up.count, shape, generator=generator)
    return made.to(parameter.device, dtype)


class Interpreter(fx.Interpreter):
    """torch's, which looks its modules up name by name; here the table is read that it has of them."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False  # errors keep their words, which are made to be one line

    def fetch_attr(self, target: str) -> Any:
        return self.submodules[target] if target in self.submodules else super().fetch_attr(target)


class _ShapeRecorder(Interpreter):
    """Runs the network, but for the layers whose results have shapes that are known without their values."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except _CANNOT_RUN as error:
            reads = ", ".join(str(self.shapes.get(source.name, "no tensor")) for source in n.all_input_nodes)
            raise UnsupportedModelError(
                f"{n.target if n.op == 'call_module' else n.name}: it cannot run on what it reads, {reads} with a "
                f"batch of one: {str(error).splitlines()[0]}; give the input shape that the model was made for"
            ) from error
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            module, shape = self.fetch_attr(target), tuple(args[0].shape)
            if _keeps_shape(module, shape):
                return args[0]
            if (made := known_shape(module, shape)) is not None:
                return args[0].new_empty(made)
            if _is_spatial(module, len(shape) - 2):
                one = module(args[0].narrow(1, 0, 1))  # what happens to one channel happens to all
                return args[0].new_empty(shape[0], shape[1], *one.shape[2:])
        return super().call_module(target, args, kwargs)


def _keeps_shape(module: nn.Module, shape: tuple[int, ...]) -> bool:
    if type(module) in NORMS:
        return len(shape) > 1 and shape[1] == module.num_features
    return type(module).__module__.startswith("torch.nn") and type(module).__name__ in ELEMENTWISE_MODULES


def _is_spatial(module: nn.Module, dims: int) -> bool:
    """Whether it treats channels apart, of values that have a batch and so many dimensions of space."""
    name = type(module).__name__
    known = type(module).__module__.startswith("torch.nn") and name in SPATIAL_MODULES and name.endswith(f"{dims}d")
    return known and not getattr(module, "return_indices", False)


def node_shapes(network: fx.GraphModule, input_shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor-valued node by its name, batch dimension (1) included.

    input_shape: of one sample. The network runs in eval mode, on the device and in the type of its parameters, without
    its convolutions, linear layers and batch norms, whose shapes need no values; its mode is left as it was.
    Raises UnsupportedModelError, with the module or call, where it cannot be run on such a sample.
    """
    recorder = _ShapeRecorder(network)
    with torch.no_grad(), evaluating(network):
        recorder.run(example(network, input_shape))
    return recorder.shapes
