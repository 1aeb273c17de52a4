"""Layers of other libraries that call torch's functions with weights of their own become torch's layers."""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compresskit.graph.format.table import shared_names

Options = dict[str, Any]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS: dict[Any, tuple[type[nn.Module], int]] = {
    **{getattr(home, f"conv{n}d"): (getattr(nn, f"Conv{n}d"), n) for home in (torch, F) for n in (1, 2, 3)},
    **{
        getattr(home, f"conv_transpose{n}d"): (getattr(nn, f"ConvTranspose{n}d"), n)
        for home in (torch, F)
        for n in (1, 2, 3)
    },
}
# Where functions have no signature that Python knows.
_ARGUMENTS = {
    "conv": "input weight bias stride padding dilation groups",
    "conv_transpose": "input weight bias stride padding output_padding groups dilation",
    "linear": "input weight bias",
    "layer_norm": "input normalized_shape weight bias eps cudnn_enable",
    "rms_norm": "input normalized_shape weight eps",
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class _Call:
    """A call with all of its arguments by name. tensors: by argument, those that the module at `owner` has under that
    name."""

    node: fx.Node
    given: dict[str, Any]
    owner: str
    tensors: dict[str, Tensor]


def own_layers(network: fx.GraphModule, module: nn.Module) -> list[str]:
    """Replaces every call of a layer's function on the tensors of one submodule, which nothing else reads, by a layer.

    It stands at the path of that submodule and has its very tensors, so that names in state dicts stay; what the
    submodule called beside it (an activation) moves to PATH_name. module: what was traced, whose submodules tell the
    momentum of batch norms. Returns the paths.
    """
    reads = Counter(str(node.target) for node in network.graph.nodes if node.op == "get_attr")
    shared, found = shared_names(network), []
    for node in list(network.graph.nodes):
        call = _owned(network, node)
        if call is None or any(reads[name] > 1 or name in shared for name in _names(call)):
            continue
        layer = _LAYERS[node.target](call, module)
        if layer is not None and _has_all(network, call):
            _put(network, call, layer.train(_mode(module, call.owner)))
            found.append(call.owner)
    return found


def _names(call: _Call) -> list[str]:
    return [f"{call.owner}.{name}" for name in call.tensors]


def _owned(network: fx.GraphModule, node: fx.Node) -> _Call | None:
    if node.op != "call_function" or node.target not in _LAYERS:
        return None
    given = _by_name(node)
    made: list[Any] = [given.get(name) for name in _TENSORS if given.get(name) is not None]
    if not made or not all(isinstance(source, fx.Node) and source.op == "get_attr" for source in made):
        return None
    owners = {str(source.target).rpartition(".")[0] for source in made}
    tensors = {}
    for name in _TENSORS:
        source = given.get(name)
        if isinstance(source, fx.Node):
            if str(source.target).rpartition(".")[2] != name:
                return None
            tensors[name] = _tensor(network, str(source.target))
    owner = owners.pop() if len(owners) == 1 else ""
    return _Call(node, given, owner, tensors) if owner and "weight" in tensors else None


def _by_name(node: fx.Node) -> dict[str, Any]:
    name = getattr(node.target, "__name__", "").rstrip("d").rstrip("123")
    names = _ARGUMENTS[name].split() if name in _ARGUMENTS else list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _tensor(network: fx.GraphModule, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    found = getattr(network.get_submodule(path), attribute)
    assert isinstance(found, Tensor)
    return found


def _has_all(network: fx.GraphModule, call: _Call) -> bool:
    """Whether the submodule has no other tensor that is read, for which the layer has no place."""
    prefix = f"{call.owner}."
    reads = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    return not any(name.startswith(prefix) for name in reads - set(_names(call)))


def _put(network: fx.GraphModule, call: _Call, layer: nn.Module) -> None:
    node, owner = call.node, call.owner
    for other in network.graph.nodes:
        if other.op == "call_module" and str(other.target).startswith(f"{owner}."):
            _move_aside(network, other, owner)
    network.add_submodule(owner, layer)
    sources = [source for source in node.all_input_nodes if source.op == "get_attr"]
    node.op, node.target, node.args, node.kwargs = "call_module", owner, (call.given["input"],), {}
    node.meta["scope"] = owner.rpartition(".")[0]
    for source in sources:
        if not source.users:
            network.graph.erase_node(source)


def _move_aside(network: fx.GraphModule, node: fx.Node, owner: str) -> None:
    """PATH.act becomes PATH_act: below a plain layer there is no place."""
    old = str(node.target)
    path = f"{owner}_{old.removeprefix(f'{owner}.').replace('.', '_')}"
    same = network.get_submodule(old)
    while any(name == path and each is not same for name, each in network.named_modules()):
        path += "_"
    network.add_submodule(path, same)
    node.target = path
    node.meta["scope"] = owner.rpartition(".")[0]


def _mode(module: nn.Module, path: str) -> bool:
    return _at(module, path).training


def _at(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


def _filled(kind: type[nn.Module], call: _Call, **options: Any) -> nn.Module | None:
    """A layer of this kind whose tensors are those of the call; None where they are not the ones that it has."""
    layer = kind(**options, device="meta")
    own = {name: tensor for name, tensor in [*layer._parameters.items(), *layer._buffers.items()] if tensor is not None}
    if own.keys() - {"num_batches_tracked"} != call.tensors.keys():
        return None
    for name, tensor in call.tensors.items():
        if isinstance(tensor, nn.Parameter) != (name in layer._parameters) or tensor.shape != own[name].shape:
            return None
        if isinstance(tensor, nn.Parameter):
            layer._parameters[name] = tensor
        else:
            layer._buffers[name] = tensor
    return layer


def _batch_norm(call: _Call, module: nn.Module) -> nn.Module | None:
    owner, given = _at(module, call.owner), call.given
    dims: type[nn.Module] | None = next((kind for kind in _BATCH_NORMS if isinstance(owner, kind)), None)
    if dims is None and (value := call.node.meta.get("val")) is not None:
        dims = dict(zip((2, 3, 4, 5), (_BATCH_NORMS[0], *_BATCH_NORMS), strict=True)).get(value.ndim)
    if dims is None or (given.get("training") and "running_mean" in call.tensors):
        return None
    layer = _filled(
        dims,
        call,
        num_features=len(call.tensors["weight"]),
        eps=given.get("eps", 1e-5),
        momentum=getattr(owner, "momentum", given.get("momentum", 0.1)),
        track_running_stats="running_mean" in call.tensors,
    )
    if layer is not None and layer._buffers.get("num_batches_tracked") is not None:
        counted = getattr(owner, "num_batches_tracked", None)
        layer._buffers["num_batches_tracked"] = torch.tensor(0) if counted is None else counted
    return layer


def _layer_norm(call: _Call, module: nn.Module) -> nn.Module | None:
    shape = call.given["normalized_shape"]
    if not all(isinstance(size, int) for size in shape):
        shape = tuple(call.tensors["weight"].shape)
    eps, bias = call.given.get("eps", 1e-5), "bias" in call.tensors
    return _filled(nn.LayerNorm, call, normalized_shape=tuple(shape), eps=eps, bias=bias)


def _rms_norm(call: _Call, module: nn.Module) -> nn.Module | None:
    return _filled(nn.RMSNorm, call, normalized_shape=tuple(call.tensors["weight"].shape), eps=call.given.get("eps"))


def _group_norm(call: _Call, module: nn.Module) -> nn.Module | None:
    options = {"num_groups": call.given["num_groups"], "num_channels": len(call.tensors["weight"])}
    return _filled(nn.GroupNorm, call, eps=call.given.get("eps", 1e-5), **options)


def _linear(call: _Call, module: nn.Module) -> nn.Module | None:
    outputs, inputs = call.tensors["weight"].shape
    return _filled(nn.Linear, call, in_features=inputs, out_features=outputs, bias="bias" in call.tensors)


def _convolution(call: _Call, module: nn.Module) -> nn.Module | None:
    kind, dims = _CONVOLUTIONS[call.node.target]
    weight, given = call.tensors["weight"], call.given
    groups = given.get("groups", 1)
    outputs, inputs = weight.shape[0], weight.shape[1] * groups
    options: Options = {"output_padding": given.get("output_padding", 0)}
    if not issubclass(kind, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        options = {}
    else:
        outputs, inputs = inputs, outputs
    for name, default in {"stride": 1, "padding": 0, "dilation": 1}.items():
        value = given.get(name, default)
        options[name] = value if isinstance(value, int | str) else tuple(value) * (dims if len(value) == 1 else 1)
    if any(isinstance(leaf, fx.Node) for value in options.values() if isinstance(value, tuple) for leaf in value):
        return None
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": tuple(weight.shape[2:])}
    return _filled(kind, call, **sizes, **options, groups=groups, bias="bias" in call.tensors)


_LAYERS: dict[Any, Callable[[_Call, nn.Module], nn.Module | None]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.linear: _linear,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
}
