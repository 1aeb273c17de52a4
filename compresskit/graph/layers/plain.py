"""What torch's plain layers make of a tensor, by the rules for its shape and without running anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
_NORM_DIMS: dict[type, tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
}
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Dropout, nn.Identity)


def known_value(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """A tensor like that which a plain layer gives, in shape and type, not in values; None where it must be run.

    Where torch would refuse what it is given, too. It spares a second that torch takes to load its compiler when it
    runs anything on the meta device.
    """
    x = args[0] if len(args) == 1 and not kwargs else None
    kind = type(module)
    tensors = (getattr(module, name, None) for name in ("weight", "running_mean"))
    if not isinstance(x, Tensor) or not x.is_floating_point() or module.training:
        return None
    if any(tensor is not None and tensor.dtype != x.dtype for tensor in tensors):
        return None
    if kind in _ACTIVATIONS or _is_fitting_norm(module, x):
        return x
    if kind is nn.Flatten:
        return x.flatten(module.start_dim, module.end_dim)
    if kind in _POOLS:
        shape = _of_pool(module, tuple(x.shape), _POOLS[kind])
    else:
        plain = getattr(module, "padding_mode", "zeros") == "zeros" and x.ndim > 1
        shape = known_shape(module, tuple(x.shape)) if plain else None
    return None if shape is None else x.new_empty(shape)


def _is_fitting_norm(module: Any, x: Tensor) -> bool:
    """Whether it has statistics of its own for these channels."""
    fits = x.ndim in _NORM_DIMS.get(type(module), ())
    return fits and module.track_running_stats and bool(x.shape[1] == module.num_features)


def _of_pool(pool: Any, shape: tuple[int, ...], dims: int) -> tuple[int, ...] | None:
    options = (pool.kernel_size, pool.stride, pool.padding, getattr(pool, "dilation", 1))
    windows = [(one,) * dims if isinstance(one, int) else tuple(one) for one in options]
    if len(shape) != dims + 2 or pool.ceil_mode or getattr(pool, "return_indices", False):
        return None
    if any(len(window) != dims for window in windows):
        return None
    sides = []
    for size, taps, stride, pad, dilation in zip(shape[2:], *windows, strict=True):
        if min(taps, stride, dilation) < 1 or not 0 <= 2 * pad <= taps:
            return None
        sides.append((size + 2 * pad - (taps - 1) * dilation - 1) // stride + 1)
    return (*shape[:2], *sides) if min(sides) > 0 else None


def known_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Of what the module makes of a value of this shape; None where it must be run, if only to say that it cannot."""
    if type(module) is nn.Linear and shape[-1] == module.in_features:
        return (*shape[:-1], module.out_features)
    if type(module) in _CONVOLUTIONS:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return _of_convolution(module, shape)
    return None


def _of_convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) != layer.weight.ndim or shape[1] != layer.in_channels:
        return None
    if layer.padding == "same":
        return (shape[0], layer.out_channels, *shape[2:])
    pads = (0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
    if min(*pads, *(stride - 1 for stride in layer.stride)) < 0:
        return None
    windows = zip(shape[2:], layer.kernel_size, layer.stride, pads, layer.dilation, strict=True)
    sides = [
        (size + 2 * pad - (taps - 1) * dilation - 1) // stride + 1 for size, taps, stride, pad, dilation in windows
    ]
    return (shape[0], layer.out_channels, *sides) if min(sides) > 0 else None
