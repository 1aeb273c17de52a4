"""What stands in the place of a convolution so that its operator can be orthogonal: cyclic, or skew-symmetric."""

from torch import nn

from compresskit.graph.layers.skew_convolution import SkewConvolution

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Shape = tuple[int, ...]


def cyclic(layer: Convolution, size: Shape, made: Shape, kernel: int | None) -> list[nn.Module]:
    """A convolution with cyclic padding, dilated by map / kernel: its taps lie all round the map, evenly.

    kernel: taps a side, a divisor of the map's; None: the largest divisor that is not above the layer's own. A strided
    layer becomes two: positions of each stride x stride square become channels, then a convolution of stride 1.
    Raises ValueError where that does not fit the layer. Source: SAO, sections III-D 4 and IV-C.
    """
    before, channels, size = _unstrided(layer, size, made)
    taps = tuple(
        _divisor(n, kernel or own, exact=kernel is not None) for n, own in zip(size, layer.kernel_size, strict=True)
    )
    dilation = tuple(n // k for n, k in zip(size, taps, strict=True))
    bias = layer.bias is not None
    options = {"dilation": dilation, "padding": "same", "padding_mode": "circular", "bias": bias}
    return [*before, type(layer)(channels, layer.out_channels, taps, **options)]  # type: ignore[arg-type]


def skewed(layer: Convolution, size: Shape, made: Shape, terms: int) -> list[nn.Module]:
    """A skew-orthogonal convolution with the layer's kernel and padding; of a stride as `cyclic` has it.

    Raises ValueError where that does not fit the layer.
    """
    before, channels, _ = _unstrided(layer, size, made)
    if layer.padding_mode not in ("zeros", "circular") or set(layer.dilation) != {1}:
        raise ValueError(
            f"it has padding_mode {layer.padding_mode!r} and dilation {layer.dilation}; soc takes zeros or circular, "
            "and dilation 1"
        )
    mode = "circular" if layer.padding_mode == "circular" else "zeros"
    bias = layer.bias is not None
    return [*before, SkewConvolution(channels, layer.out_channels, layer.kernel_size, mode, terms, bias)]


def _unstrided(layer: Convolution, size: Shape, made: Shape) -> tuple[list[nn.Module], int, Shape]:
    """What takes the stride away, channels and map behind it. Raises ValueError if the layer does not just stride."""
    stride = layer.stride[0]
    if layer.groups > 1:
        raise ValueError(f"it has {layer.groups} groups; draw it by delta-orthogonal")
    if len(set(layer.stride)) > 1 or (stride > 1 and not isinstance(layer, nn.Conv2d)):
        raise ValueError(f"its strides are {layer.stride}; only one stride for both sides of images can be undone")
    if any(n != m * stride for n, m in zip(size, made, strict=True)):
        part = f"1/{stride} of a side" if stride > 1 else "the same size"
        raise ValueError(f"it makes {made} of a map of {size}, not {part}; draw it by delta-orthogonal")
    if stride == 1:
        return [], layer.in_channels, size
    return [nn.PixelUnshuffle(stride)], layer.in_channels * stride**2, made


def _divisor(positions: int, taps: int, *, exact: bool) -> int:
    found = max(k for k in range(1, taps + 1) if positions % k == 0)
    if exact and found != taps:
        raise ValueError(
            f"kernel {taps} does not divide its map of {positions}; the largest up to it that does is {found}"
        )
    return found
