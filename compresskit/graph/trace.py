"""Any module to a graph that trains and evaluates like it, or the module and the line that stand in the way."""

import copy
import inspect
import traceback
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.format.allowed import MODULES
from compresskit.graph.format.table import to_table
from compresskit.graph.layers import windows
from compresskit.graph.layers.stochastic_depth import StochasticDepth
from compresskit.graph.shapes import evaluating

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


def trace(module: nn.Module) -> fx.GraphModule:
    """The network that `module` computes in eval mode: one input batch, one output tensor.

    It shares its layers and tensors with `module` (16-bit weights become float32 in a copy), whose mode stays as it
    was. Dropout and stochastic depth written as functions become modules, so that train() and eval() work; what else
    `forward` does only in training (auxiliary heads) is left out. node.meta["scope"] is the path of the submodule whose
    forward made the call.
    Raises UnsupportedModelError with the submodule and the line that stopped the tracer, or the call that a checkpoint
    could not hold.
    """
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        module = copy.deepcopy(module).float()
    tracer = _Tracer()
    with evaluating(module):
        try:
            graph = tracer.trace(module)
        except Exception as error:  # whatever forward raises when it is given no numbers
            raise UnsupportedModelError(_stopped(module, tracer.stopped_in, error)) from error
    _check_names(graph)
    network = fx.GraphModule(module, graph, type(module).__name__)
    network.training = module.training
    for node in graph.nodes:
        if node.op == "call_function":
            _replace_call(network, node)
    network.recompile()
    _check_output(network)
    to_table(network)
    return network


def traced(module: nn.Module) -> fx.GraphModule:
    """The module itself where it is a graph already."""
    return module if isinstance(module, fx.GraphModule) else trace(module)


class _Tracer(fx.Tracer):
    """Notes in which submodule each node was made, and in which one the trace stopped."""

    stopped_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LEAVES

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

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.stopped_in is None:
                self.stopped_in = self.path_of_module(m)
            raise


_LEAVES = frozenset(MODULES.values())


def _stopped(module: nn.Module, path: str | None, error: Exception) -> str:
    """Where and why the trace stopped: the innermost line that is neither torch's nor ours."""
    ours = (str(Path(torch.__file__).parent), __file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    line = f" at {frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`" if frames else ""
    where = type(module).__name__ + (f", submodule {path}" if path else "")
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{where}: torch.fx cannot trace it{line}: {reason}; forward must take one batch and may not branch, loop or "
        "compute on the values or shapes of tensors in Python"
    )


def _check_names(graph: fx.Graph) -> None:
    """The graph is run as Python, which knows `self.0.a-b` to be a layer, but neither `self.class` nor another self."""
    for node in graph.nodes:
        parts = str(node.target).split(".") if node.op in ("call_module", "get_attr") else []
        words = [part for part in parts if iskeyword(part)] or ["self"] * (node.name == "self")
        if words:
            raise UnsupportedModelError(f"{node.target}: {words[0]!r} is a word of Python; give it another name")


def _replace_call(network: fx.GraphModule, node: fx.Node) -> None:
    """A module or a function of ours in the place of a call that would not train, or not load without torchvision."""
    name = f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"
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
        options = {key: given.arguments.pop(key) for key in inspect.signature(kind).parameters}
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


def _check_output(network: fx.GraphModule) -> None:
    value = next(node for node in network.graph.nodes if node.op == "output").args[0]
    if not isinstance(value, fx.Node):
        kind = type(value).__name__.removeprefix("immutable_")
        raise UnsupportedModelError(
            f"{type(network).__name__}: forward returns a {kind} in eval mode; a network must return one tensor, so "
            "wrap it in a module that picks the one to keep"
        )
