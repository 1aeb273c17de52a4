"""Layers of torch that torch.export sees as one call each, so that they come back as the layers that they are."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.prepared import LEAVES

_TENSOR = object()  # stands for one among the leaves of arguments and results


@dataclass
class Call:
    """Of the layer at `path`: how its arguments and its result are put together; tensors stand as placeholders."""

    path: str
    layer: nn.Module  # with a forward that computes
    arguments: tuple[list[Any], pytree.TreeSpec]
    result: tuple[list[Any], pytree.TreeSpec] = field(init=False)

    def bound(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with these in the places of the tensors."""
        args, kwargs = _filled(self.arguments, tensors)
        return args, kwargs


_calls: list[Call] = []  # of the export that is under way, by number

_LIBRARY = torch.library.Library("compresskit", "DEF")
_LIBRARY.define("layer(Tensor[] inputs, int number) -> Tensor[]")


@contextmanager
def opaque_layers(module: nn.Module) -> Iterator[list[Call]]:
    """Inside the block each call of a layer of torch within `module` is one call of `compresskit::layer`.

    Gives these calls: the operation's argument `number` counts them.
    """
    layers: list[nn.Module] = []
    for path, layer in module.named_modules():
        if path and type(layer) in LEAVES:
            memo = {id(tensor): tensor for tensor in [*layer.parameters(), *layer.buffers()]}
            layer.forward = _forward(path, copy.deepcopy(layer, memo))
            layers.append(layer)
    _calls.clear()
    try:
        yield _calls
    finally:
        for layer in layers:
            del layer.forward


def _forward(path: str, layer: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(isinstance(leaf, torch.SymInt) for leaf in leaves):
            raise UnsupportedModelError(f"{path}: it is called with a size that depends on the batch")
        number = len(_calls)
        _calls.append(Call(path, layer, (_without_tensors(leaves), structure)))
        results = torch.ops.compresskit.layer(tensors, number)  # which lets `_fake` note the form of the result
        return _filled(_calls[number].result, results)

    return forward


@torch.library.register_fake("compresskit::layer", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _fake(inputs: list[Tensor], number: int) -> list[Tensor]:
    """Runs the layer on fake weights. Results have memory of their own, as the operation promises."""
    call = _calls[number]
    mode: Any = getattr(inputs[0], "fake_mode")  # noqa: B009  # torch's own attribute, which mypy does not know
    state = {**dict(call.layer.named_parameters()), **dict(call.layer.named_buffers())}
    fakes = {name: mode.from_tensor(tensor.detach()) for name, tensor in state.items()}
    args, kwargs = call.bound(inputs)
    leaves, structure = pytree.tree_flatten(torch.func.functional_call(call.layer, fakes, args, kwargs))
    call.result = (_without_tensors(leaves), structure)
    return [torch.empty_like(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def _without_tensors(leaves: Sequence[Any]) -> list[Any]:
    return [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _filled(form: tuple[list[Any], pytree.TreeSpec], tensors: Sequence[Any]) -> Any:
    leaves, structure = form
    rest = iter(tensors)
    return pytree.tree_unflatten([next(rest) if leaf is _TENSOR else leaf for leaf in leaves], structure)


def places(call: Call) -> list[tuple[Any, ...]]:
    """Where each tensor of the result lies in it: the keys that lead there, () where the result is the tensor."""
    leaves, structure = call.result
    whole = pytree.tree_unflatten(leaves, structure)
    found: Any = pytree.tree_flatten_with_path(whole)[0]
    return [
        tuple(key.idx if hasattr(key, "idx") else key.key for key in path) for path, leaf in found if leaf is _TENSOR
    ]
