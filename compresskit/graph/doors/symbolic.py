"""The first door: torch.fx runs forward once without numbers, which takes milliseconds and leaves all sizes free."""

import inspect
import operator
import traceback
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.prepared import LEAVES
from compresskit.graph.layers import windows
from compresskit.graph.layers.stochastic_depth import StochasticDepth

# Functions with a `training` flag, which a trace would freeze: each becomes a module with the function's options.
_MODULE_OF: dict[str, type[nn.Module]] = {
    "torch.nn.functional.dropout": nn.Dropout,
    "torch.nn.functional.dropout1d": nn.Dropout1d,
    "torch.nn.functional.dropout2d": nn.Dropout2d,
    "torch.nn.functional.dropout3d": nn.Dropout3d,
    "torch.nn.functional.alpha_dropout": nn.AlphaDropout,
    "torch.nn.functional.feature_alpha_dropout": nn.FeatureAlphaDropout,
    "torchvision.ops.stochastic_depth.stochastic_depth": StochasticDepth,
    "torchvision.models.swin_transformer.shifted_window_attention": windows.WindowAttention,
}
_FUNCTION_OF: dict[str, Callable[..., Any]] = {
    "torchvision.models.swin_transformer._patch_merging_pad": windows.merge_patches,
    "torchvision.models.swin_transformer._get_relative_position_bias": windows.relative_position_bias,
}
# What makes a tensor in memory of its own.
_MAKING = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip
_MAKE = frozenset(
    {
        operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, torch.cat, functional.conv2d,
        functional.linear, functional.batch_norm, functional.layer_norm,
    }
)  # fmt: skip
_FIRST = frozenset({"input", "tensors"})  # names of first arguments in torch


def symbolic(module: nn.Module) -> fx.GraphModule:
    """What forward of the module, in the mode in which it is, calls with its first argument.

    node.meta["scope"] is the path of the submodule whose forward made the call.
    Raises UnsupportedModelError with the submodule and the line that stopped the tracer.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:  # whatever forward raises when it is given no numbers
        raise UnsupportedModelError(_stopped(module, tracer.stopped_in, error)) from error
    check_names(graph)
    return fx.GraphModule(module, graph, type(module).__name__)


def check_names(graph: fx.Graph) -> None:
    """The graph is run as Python, which knows `self.0.a-b` to be a layer, but neither `self.class` nor another self."""
    for node in graph.nodes:
        parts = str(node.target).split(".") if node.op in ("call_module", "get_attr") else []
        words = [part for part in parts if iskeyword(part)] or ["self"] * (node.name == "self")
        if words:
            raise UnsupportedModelError(f"{node.target}: {words[0]!r} is a word of Python; give it another name")


def trains_alike(module: nn.Module, network: fx.GraphModule) -> bool:
    """Whether forward of the module, of which `network` is the trace in eval mode, makes the same calls in training
    mode: but for the flag of functions for which modules will stand, and for counting the batches of batch norms.

    The module, whose layers the network shares, is left in training mode; its buffers are as before.
    """
    try:
        in_training, changed = training_trace(module)
    except UnsupportedModelError:
        return False
    return changed <= {"num_batches_tracked"} and _same_calls(network, in_training)


def training_trace(module: nn.Module) -> tuple[fx.GraphModule, set[str]]:
    """`symbolic` in training mode, in which the module is left; and the names of buffers that forward wrote, which are
    as before."""
    owners = [each for each in module.modules() if type(each) not in LEAVES]
    before = [(each, name, b, b.clone()) for each in owners for name, b in each._buffers.items() if b is not None]
    try:
        in_training = symbolic(module.train())
    finally:
        changed = {name for each, name, old, copy in before if not _is(each._buffers[name], copy)}
        for each, name, buffer, copy in before:
            each._buffers[name] = buffer.copy_(copy)
    return in_training, changed


def _is(buffer: Tensor | None, before: Tensor) -> bool:
    return buffer is not None and (buffer.is_meta or torch.equal(buffer, before))


def _same_calls(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    copies: dict[fx.Node, fx.Node] = {}
    nodes, others = list(first.graph.nodes), list(second.graph.nodes)
    for node, other in zip(nodes, others, strict=False):
        if same_call(node, lambda source: copies[source].name) != same_call(other, lambda source: source.name):
            return False
        copies[node] = other
    return len(nodes) == len(others)


def same_call(node: fx.Node, told: Callable[[fx.Node], str]) -> str:
    """What it calls with which arguments, in words that are equal for equal calls; told: what names a source.

    Without the flag of training of functions for which modules will stand, that know their mode.
    """
    args, kwargs = node.args, node.kwargs
    is_switched = _name(node) in _MODULE_OF or node.target is torch.nn.functional.batch_norm
    if is_switched and callable(node.target):
        given = inspect.signature(node.target).bind(*args, **kwargs)
        args, kwargs = (), {key: value for key, value in given.arguments.items() if key != "training"}
    return repr((node.op, node.target, fx.node.map_arg((args, kwargs), lambda source: (told(source),))))


def writes_shared(network: fx.GraphModule) -> bool:
    """Whether forward writes into a tensor (x += y) that something else may read, too. The trace computes x + y, which
    is the same only where nothing does."""
    return any(
        node.meta.get("in_place") and not (_is_made(network, source) and list(source.users) == [node])
        for node in network.graph.nodes
        for source in node.args[:1]
    )


def _is_made(network: fx.GraphModule, node: Any) -> bool:
    """Whether the node makes its value anew, or is the network's input."""
    if not isinstance(node, fx.Node) or node.op == "call_module":
        return isinstance(node, fx.Node) and isinstance(network.get_submodule(str(node.target)), _MAKING)
    return node.op == "placeholder" or node.target in _MAKE


def replace_calls(network: fx.GraphModule) -> None:
    """A module or a function of ours in the place of calls that would not train, or not load without torchvision; what
    a call reads first stands first, also where it was given by its name."""
    for node in network.graph.nodes:
        for name in _FIRST.intersection(node.kwargs) if not node.args else ():
            node.args, node.kwargs = (node.kwargs[name],), {k: v for k, v in node.kwargs.items() if k != name}
        if node.op == "call_function":
            _replace(network, node)


class _Proxy(fx.Proxy):
    """Notes which calls write into their first argument in Python (x += y)."""


def _writing(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def write(self: fx.Proxy, other: Any) -> Any:
        made = function(self, other)
        made.node.meta["in_place"] = True
        return made

    return write


for _name_of, _function in {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow, "and": operator.and_,
    "or": operator.or_, "xor": operator.xor,
}.items():  # fmt: skip
    setattr(_Proxy, f"__i{_name_of}__", _writing(_function))


class _Tracer(fx.Tracer):
    """Notes in which submodule each node was made, and in which one the trace stopped."""

    stopped_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LEAVES

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The first argument of forward is the input batch; any others keep their defaults."""
        names = list(inspect.signature(root_fn).parameters)
        return root_fn, [self.root, self.create_proxy("placeholder", names[1], (), {})]

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        paths = [path for path, _ in self.module_stack.values()]
        if kind == "call_module":  # the called module itself is the last
            paths.pop()
        node.meta["scope"] = paths[-1] if paths else ""
        node.type = None  # an annotation would reach the generated code, and need the user's source there
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.stopped_in is None:
                self.stopped_in = self.path_of_module(m)
            raise


def _stopped(module: nn.Module, path: str | None, error: Exception) -> str:
    """Where and why the trace stopped: the innermost line that is neither torch's nor ours."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    line = f" at {frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`" if frames else ""
    where = type(module).__name__ + (f", submodule {path}" if path else "")
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{where}: torch.fx cannot trace it{line}: {reason}"


def _name(node: fx.Node) -> str:
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"


def _replace(network: fx.GraphModule, node: fx.Node) -> None:
    name = _name(node)
    if name in _FUNCTION_OF:
        node.target = _FUNCTION_OF[name]
        node.meta.pop("is_wrapped", None)
    elif name in _MODULE_OF:
        assert callable(node.target)
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        if given.arguments.pop("training"):  # drops in eval mode as well, so it is no switch
            return
        kind = _MODULE_OF[name]
        taken = [key for key in inspect.signature(kind).parameters if key in given.arguments]
        options = {key: given.arguments.pop(key) for key in taken}
        path = _free_path(network, node)
        network.add_submodule(path, kind(**options).train(network.training))
        node.op, node.target, node.args, node.kwargs = "call_module", path, tuple(given.arguments.values()), {}


def _free_path(network: fx.GraphModule, node: fx.Node) -> str:
    """The scope of the node where that module does nothing else, or a new name below it."""
    scope = str(node.meta["scope"])
    inside = [n for n in network.graph.nodes if f"{n.meta['scope']}.".startswith(f"{scope}.")]
    path = scope if inside == [node] and scope else f"{scope}.{node.name}".removeprefix(".")
    taken = {name for name, _ in network.named_modules()}
    while path in taken:
        path += "_"
    return path
