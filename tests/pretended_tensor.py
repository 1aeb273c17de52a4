"""Tensors of a pretended GPU (see tests/pretended_gpu.py): what they refuse, and the count of what they copy."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

import compresskit

GPU = torch.device("cuda", 0)
PACKAGE = Path(compresskit.__file__).parent

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default}  # may cross
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_SIZED_BY_VALUES = {  # their results' shapes, or the answer itself, must come to the host
    _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default, _aten._unique2.default,
    _aten.unique_dim.default, _aten.unique_consecutive.default, _aten.bincount.default,
    _aten.repeat_interleave.Tensor,
}  # fmt: skip
_MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
_NOT_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
)
GENERATOR = "Expected a 'cuda' device type for generator but found 'cpu'"


@dataclass
class Transfers:
    """How often, by file:line of the package, tensors were copied to the device, and the host read from it (a copy, a
    number, or a shape that depends on values): each reading waits until the device has done all that it was given."""

    to_device: Counter[str] = field(default_factory=Counter)
    to_host: Counter[str] = field(default_factory=Counter)

    def __sub__(self, other: "Transfers") -> "Transfers":
        """What these have more; of two runs of which one has one batch more, what a batch costs."""
        pairs = ((self.to_device, other.to_device), (self.to_host, other.to_host))
        return Transfers(*(one - another for one, another in pairs))


running = [Transfers()]  # of each `with`, the innermost last


class OnGpu(Tensor):
    """`held`, which the world takes for a tensor of the GPU. To torch's own code it is one of the CPU, so that autograd
    asks for no driver."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "OnGpu":
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device="cpu", requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copied: Tensor = OnGpu(self.held.detach().clone())
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = (
                nn.Parameter(copied, self.requires_grad) if is_parameter else copied.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> Any:
        note("to_host")
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        _check_devices(func, args, leaves)
        _count(func, args)
        found = func(*down(args), **down(kwargs))
        if func in _COPIES:
            return args[0]
        if func is _aten._local_scalar_dense.default or func is _aten.equal.default:
            return found
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, OnGpu, found))


def _check_devices(func: Any, args: Any, leaves: list[Any]) -> None:
    """Raises RuntimeError for what CUDA refuses."""
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(GENERATOR)
    if func in _COPIES:
        return
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnGpu)]
    refused = [x for x in others if x.ndim > 0 and not (func in _INDEXED and not x.is_floating_point())]
    written = func._schema.is_mutable and any(args[0] is x for x in others)
    if refused or written:
        raise RuntimeError(f"{_MIXED} ({func}, of the CPU: {[tuple(x.shape) for x in refused or others]})")


def _count(func: Any, args: Any) -> None:
    if func in _COPIES:
        read, sent = not isinstance(args[0], OnGpu), not isinstance(args[1], OnGpu)
        note("to_host", read)
        note("to_device", sent and args[1].ndim > 0)  # a number goes along with the command
    elif func in _INDEXED:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        fills = len(args) > 2 and args[2].numel() == 1  # CUDA writes one number where the mask says, and asks nothing
        note("to_device", any(not isinstance(index, OnGpu) for index in indices))
        note("to_host", not fills and any(index.dtype is torch.bool for index in indices))
    else:
        note("to_host", func is _aten._local_scalar_dense.default or func in _SIZED_BY_VALUES)


def note(way: str, crosses: bool = True) -> None:
    """One more to_host or to_device, at the line of the package that is at work."""
    if crosses:
        getattr(running[-1], way)[_site()] += 1


def _site() -> str:
    """The line of the package that is at work, as file:line; "" where none is."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def down(tree: Any) -> Any:
    return tree_map_only(OnGpu, lambda x: x.held, tree)


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGpu(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.held if isinstance(gradient, OnGpu) else gradient


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: OnGpu) -> Tensor:
        return x.held.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient if isinstance(gradient, OnGpu) else OnGpu(gradient)


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the other device; the tensor itself where it lies there."""
    if isinstance(x, OnGpu) == (device.type == "cuda"):
        return x if isinstance(x, OnGpu) else torch.Tensor.to(x, device)
    if device.type == "cuda":
        note("to_device")
        return _ToGpu.apply(x)
    note("to_host")
    return torch.Tensor.to(_ToCpu.apply(x), device)
