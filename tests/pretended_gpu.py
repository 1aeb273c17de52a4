"""A CUDA device that is only pretended: what would fail on a GPU fails without one, and copies are counted.

A tensor "on cuda:0" is a CPU tensor in a wrapper. As on a GPU, it refuses to be mixed with tensors of the CPU (single
numbers and indices apart), to be read by numpy and to be drawn with a generator of the CPU. What goes over the bus, or
makes the host wait for the device, is counted by the line of the package that asked for it.

It shows nothing of speed, memory, CUDA's own rounding, NCCL and torch.compile. inference_mode is no_grad here, and
float16 and bfloat16 are those of the CPU's autocast.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.pretended_tensor import GENERATOR, GPU, OnGpu, Transfers, down, moved, note, running

FREE, TOTAL = 8 << 30, 16 << 30  # bytes of its memory
_NOT_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
)


def _device(given: Any) -> torch.device | None:
    """What an argument names: a device, its name or its number."""
    if isinstance(given, int) and not isinstance(given, bool):
        return torch.device("cuda", given)
    return torch.device(given) if isinstance(given, str | torch.device) else None


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to, in all the forms that it can be called in."""
    device, dtype = _device(kwargs.get("device")), kwargs.get("dtype")
    for given in args:
        if isinstance(given, Tensor):
            device, dtype = given.device, given.dtype
        elif isinstance(given, torch.dtype):
            dtype = given
        elif not isinstance(given, bool):
            device = _device(given) or device
    found = x if device is None else moved(x, device)
    rest = {name: kwargs[name] for name in ("copy", "memory_format") if name in kwargs}
    return torch.Tensor.to(found, dtype or found.dtype, **rest)


def _refused(x: Tensor, *_: Any, **__: Any) -> Any:
    raise TypeError(_NOT_NUMPY)


def _listed(x: OnGpu) -> Any:
    note("to_host")
    return x.held.tolist()


def _new_tensor(x: OnGpu, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    note("to_device")
    return OnGpu(torch.tensor(down(data), dtype=dtype or x.dtype))


_OF_ALL: dict[str, Callable[..., Any]] = {
    "to": _to,
    "cuda": lambda x, *_, **__: moved(x, GPU),
    "cpu": lambda x, **_: moved(x, torch.device("cpu")),
    "pin_memory": lambda x, *_: x,
}
_OF_GPU: dict[str, Callable[..., Any]] = {
    "numpy": _refused,
    "__array__": _refused,
    "tolist": _listed,
    "new_tensor": _new_tensor,
    "data_ptr": lambda x: x.held.data_ptr(),
    "untyped_storage": lambda x: x.held.untyped_storage(),
}
_FROM_HOST = {"tensor", "as_tensor", "asarray"}  # make tensors of what the host has
_PLACES = {torch.Tensor.device: GPU, torch.Tensor.is_cuda: True, torch.Tensor.is_cpu: False}


class _Torch(TorchFunctionMode):
    """torch's functions, as they behave beside a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if name == "__get__":  # an attribute, of its descriptor
            place = _PLACES.get(func.__self__) if isinstance(first, OnGpu) else None
            return func(*args, **kwargs) if place is None else place
        if isinstance(first, Tensor) and name in _OF_ALL:
            return _OF_ALL[name](*args, **kwargs)
        if isinstance(first, OnGpu) and name in _OF_GPU:
            return _OF_GPU[name](*args, **kwargs)
        if (device := _device(kwargs.get("device"))) is None:
            return func(*args, **kwargs)
        if device.type != "cuda":
            return func(*down(args), **down(kwargs))
        return _made(func, name, args, kwargs)


def _made(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a factory makes on the GPU."""
    if any(isinstance(leaf, torch.Generator) for leaf in tree_leaves((args, kwargs))):
        raise RuntimeError(GENERATOR)
    note("to_device", name in _FROM_HOST)
    needs_grad = kwargs.pop("requires_grad", False)
    found = func(*down(args), **(down(kwargs) | {"device": torch.device("cpu")}))
    return tree_map_only(Tensor, lambda x: OnGpu(x).requires_grad_(needs_grad), found)


_load, _Autocast, _run_thread = torch.load, torch.autocast, threading.Thread.run


def _loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
    device = _device(map_location) or torch.device("cpu")
    found = _load(file, map_location="cpu", **kwargs)
    return tree_map_only(Tensor, lambda x: moved(x.detach(), device), found) if device.type == "cuda" else found


def _in_thread(thread: threading.Thread) -> None:
    with _Torch():  # modes are of one thread
        _run_thread(thread)


class _CpuAutocast(_Autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _cuda(free: int) -> dict[str, Any]:
    """What torch.cuda answers."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed", "manual_seed_all",
         "set_rng_state", "set_rng_state_all", "_lazy_init"),
        lambda *_, **__: None,
    )  # fmt: skip
    zero = dict.fromkeys(
        ("memory_reserved", "memory_allocated", "max_memory_allocated", "current_device"), lambda *_: 0
    )
    card = SimpleNamespace(name="pretended", total_memory=TOTAL, major=9, minor=0)
    return nothing | zero | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "mem_get_info": lambda *_: (free, TOTAL),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [],
        "get_device_name": lambda *_: card.name,
        "get_device_properties": lambda *_: card,
        "get_device_capability": lambda *_: (card.major, card.minor),
        "make_graphed_callables": lambda call, *_, **__: call,
    }  # fmt: skip


_group = clip_grad._group_tensors_by_device_and_dtype


def _grouped(lists: Any, *args: Any) -> Any:
    """torch's grouping of tensors, which is no Python and takes all for tensors of the CPU."""
    found = _group(lists, *args).items()
    return {(group[0][0][0].device, dtype): group for (_, dtype), group in found}


@contextmanager
def pretended_gpu(free: int = FREE) -> Iterator[Transfers]:
    """torch has a GPU, with so many bytes free, and counts what is copied, anew for each `with`."""
    optimizer = torch.optim.Optimizer
    checks = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # by version of torch
    optimizer([nn.Parameter(torch.zeros(1))], {})  # the first one has torch list its functions: the true ones
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    running.append(Transfers())
    with ExitStack() as stack:
        stack.callback(running.pop)
        for target, changes in (
            (torch.cuda, _cuda(free)),
            (torch, {"load": _loaded, "autocast": _CpuAutocast, "inference_mode": lambda mode=True: torch.no_grad()}),
            (clip_grad, {"_group_tensors_by_device_and_dtype": _grouped}),
            (threading.Thread, {"run": _in_thread}),
            (optimizer, {name: lambda self: None for name in checks if hasattr(optimizer, name)}),
        ):
            stack.enter_context(patch.multiple(target, **changes))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(_Torch())
        yield running[-1]
