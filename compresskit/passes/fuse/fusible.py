"""Which layer can stand in for a chain: its kind, kernel, stride and alignment, and what it saves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import fx, nn

from compresskit.errors import RecipeError, UnsupportedModelError
from compresskit.graph.chains import KEPT_MODULES, WEIGHTED, Chain, find_chain, weighted
from compresskit.graph.counting import LayerCount, count
from compresskit.graph.edit import replace_chain
from compresskit.graph.shapes import node_shapes
from compresskit.numerics.least_squares.fusion import Channels, Fusion
from compresskit.numerics.moments.patches import Patches
from compresskit.passes.fuse.fields import WINDOWED, Field, receptive_fields
from compresskit.passes.fuse.options import Pair
from compresskit.passes.moments import Request
from compresskit.shapes import Shape

Kernel = int | tuple[int, ...] | None
ENLARGING = (nn.Upsample, nn.PixelShuffle, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ENLARGING_FUNCTIONS = {"interpolate", "pixel_shuffle", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
CONVOLUTIONS: dict[int, Callable[..., nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


@dataclass(frozen=True)
class Fusible:
    """A chain and the layer that can stand in for it.

    request: the moments that its weights follow from. weight_shape: (out, in / groups, *kernel). bias_shape: (out,), or
    (out, *positions) where each position has its own.
    padding: of the layer, symmetric; pad: of the source before it, where no symmetric padding aligns the kernel.
    taps: features of one input channel. positions: output positions of one sample.
    saved_params, saved_macs: negative where the fused layer is larger.
    """

    chain: Chain
    request: Request
    weight_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    padding: tuple[int, ...]
    pad: tuple[int, ...]
    taps: int
    positions: int
    saved_params: int
    saved_macs: int


def find(
    network: fx.GraphModule,
    pair: Pair | tuple[str, ...] | str,
    input_shape: Shape,
    kernel: Kernel = None,
    channels: Channels = "joint",
) -> Fusible:
    """The fusible chain that a recipe's entry names: [first, last], [block], or a Pair with a kernel of its own."""
    known = facts(network, input_shape)
    if isinstance(pair, Pair):
        return prepare(network, find_chain(network, pair.first, pair.last), known, pair.kernel or kernel, channels)
    return prepare(network, find_chain(network, *pair), known, kernel, channels)


@dataclass(frozen=True)
class Facts:
    """What planning needs to know of a network: its nodes by name, shapes by node, and parameters and
    multiply-accumulates by layer."""

    nodes: dict[str, fx.Node]
    shapes: dict[str, tuple[int, ...]]
    layers: dict[str, LayerCount]


def facts(network: fx.GraphModule, input_shape: Shape) -> Facts:
    """One pass for all the chains of a network."""
    layers = {layer.name: layer for layer in count(network, input_shape).layers}
    nodes = {node.name: node for node in network.graph.nodes}
    return Facts(nodes, node_shapes(network, input_shape), layers)


def prepare(
    network: fx.GraphModule, chain: Chain, known: Facts, kernel: Kernel = None, channels: Channels = "joint"
) -> Fusible:
    """How `chain` can become one layer: linear where its last weighted layer is, a convolution otherwise."""
    linear = isinstance(weighted(network, chain.layers[-1]), nn.Linear)
    bare = _linear(chain, known.shapes) if linear else _convolution(network, chain, known, kernel, channels)
    return _with_savings(bare, known)


def _linear(chain: Chain, shapes: dict[str, tuple[int, ...]]) -> Fusible:
    source, target = shapes[chain.source], shapes[chain.target]
    if len(target) > 2 and source[1:-1] != target[1:-1]:
        raise UnsupportedModelError(
            f"{chain}: {source[1:-1]} positions become {target[1:-1]}; a linear layer keeps them"
        )
    flatten = len(target) == 2 and len(source) > 2
    features = prod(source[1:]) if flatten else source[-1]
    request = Request(
        f"{chain.source}--{chain.target}", chain.source, chain.target, None, flatten, features, target[-1]
    )
    taps, positions = prod(source[2:]) if flatten else 1, prod(target[1:-1])
    return Fusible(chain, request, (target[-1], features), target[-1:], (), (), taps, positions, 0, 0)


def _convolution(network: fx.GraphModule, chain: Chain, known: Facts, kernel: Kernel, channels: Channels) -> Fusible:
    source, target = known.shapes[chain.source], known.shapes[chain.target]
    nodes = [known.nodes[name] for name in chain.nodes]
    dimensions = len(source) - 2
    if dimensions not in CONVOLUTIONS or len(target) != len(source):
        raise UnsupportedModelError(
            f"{chain}: a map of shape {source[1:]} becomes {target[1:]}; that is no 1-D or 2-D convolution"
        )
    sizes = tuple(zip(source[2:], target[2:], strict=True))
    _check_enlarging(network, chain, nodes)
    fields = receptive_fields(network, known.nodes[chain.source], nodes, known.shapes) or _ratios(chain, sizes, kernel)
    kernels = (kernel,) * dimensions if isinstance(kernel, int) or kernel is None else kernel
    if len(kernels) != dimensions:
        raise UnsupportedModelError(
            f"{chain}: kernel {kernel} has {len(kernels)} sizes, the maps {dimensions} dimensions"
        )
    for size, asked in zip(source[2:], kernels, strict=True):
        if asked is not None and asked >= 2 * size:  # its outer taps would see padding alone, wherever it stands
            raise RecipeError(f"fuse.kernel: {asked} was given for {chain}, whose map has {size} positions; take less")
    windows = [f.seeing(*size).window(k) for f, size, k in zip(fields, sizes, kernels, strict=True)]
    groups = _groups(network, chain, nodes)
    strides = tuple(field.stride for field in fields)
    padding = tuple(
        (before, (out - 1) * stride + width - before - size)
        for (width, before), (size, out), stride in zip(windows, sizes, strides, strict=True)
    )
    if channels == "document":
        padding = _centred(chain, [width for width, _ in windows], sizes, strides)
    patches = Patches(tuple(w for w, _ in windows), strides, (1,) * dimensions, padding, groups)
    weight_shape = (target[1], source[1] // groups, *patches.kernel)
    request = Request(
        f"{chain.source}--{chain.target}", chain.source, chain.target, patches, False, prod(weight_shape[1:]), target[1]
    )
    bias_shape = target[1:] if channels == "document" else target[1:2]
    symmetric = tuple(before for before, _ in padding)
    taps, positions = prod(patches.kernel), prod(target[2:])
    if (
        min(symmetric) >= 0
        and replace(patches, padding=tuple((b, b) for b in symmetric)).positions(source[2:]) == target[2:]
    ):
        return Fusible(chain, request, weight_shape, bias_shape, symmetric, (), taps, positions, 0, 0)
    pad = tuple(amount for sides in reversed(padding) for amount in sides)
    return Fusible(chain, request, weight_shape, bias_shape, (0,) * dimensions, pad, taps, positions, 0, 0)


def _centred(
    chain: Chain, kernel: Sequence[int], sizes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """floor(k / 2) zeros before and floor((k - 1) / 2) behind, whatever the chain pads (FuseInit, Definition 1)."""
    for (size, out), stride in zip(sizes, strides, strict=True):
        become = -(-size // stride)
        if become != out:
            raise UnsupportedModelError(
                f"{chain}: {size} positions become {out}, and {become} with Definition 1's padding and a stride of "
                f"{stride}; use `channels: joint` or independent, which pad as the chain does"
            )
    return tuple((width // 2, (width - 1) // 2) for width in kernel)


def _check_enlarging(network: fx.GraphModule, chain: Chain, nodes: Sequence[fx.Node]) -> None:
    """Raises UnsupportedModelError for what makes a map larger, which no convolution does."""
    for node in nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ENLARGING) or getattr(node.target, "__name__", "") in ENLARGING_FUNCTIONS:
            raise UnsupportedModelError(
                f"{chain}: {node.name} makes the map larger, which no convolution can; fuse layers before it, or behind"
            )


def _ratios(chain: Chain, sizes: tuple[tuple[int, int], ...], kernel: Kernel) -> tuple[Field, ...]:
    """Fields of a chain that sees the whole map: non-overlapping windows, if the recipe says how large a kernel is."""
    if kernel is None or any(size % out for size, out in sizes):
        raise UnsupportedModelError(
            f"{chain}: a value in it sees the whole map; give a `kernel` to fuse it into a convolution"
        )
    return tuple(Field(size // out, 0, size // out - 1) for size, out in sizes)


def _groups(network: fx.GraphModule, chain: Chain, nodes: Sequence[fx.Node]) -> int:
    """Groups of the fused convolution: the layers' own where all agree and nothing between them mixes channels."""
    groups = {getattr(weighted(network, name), "groups", 1) for name in chain.layers}
    plain = all(
        node.op == "call_module"
        and isinstance(network.get_submodule(str(node.target)), (*WEIGHTED, *KEPT_MODULES, *WINDOWED))
        for node in nodes
    )
    return int(groups.pop()) if plain and len(groups) == 1 else 1


def _with_savings(fusible: Fusible, known: Facts) -> Fusible:
    names = fusible.chain.nodes  # of calls; what a module costs is under its own name
    held = [n for name in names for n in known.nodes[name].all_input_nodes if n.op == "get_attr"]  # bias maps
    counted = dict.fromkeys([*names, *(str(node.target) for node in [*(known.nodes[n] for n in names), *held])])
    removed = [known.layers[name] for name in counted if name in known.layers]
    weights = prod(fusible.weight_shape)
    return replace(
        fusible,
        saved_params=sum(layer.parameters for layer in removed) - weights - prod(fusible.bias_shape),
        saved_macs=sum(layer.macs for layer in removed) - weights * fusible.positions,
    )


def apply(network: fx.GraphModule, fusible: Fusible, fusion: Fusion | None) -> fx.GraphModule:
    """New network with the fused layer in the place of its chain; `network` stays as it was.

    fusion: its weights; None leaves them at random, which is enough to plan what comes after.
    """
    like = weighted(network, fusible.chain.layers[-1]).weight
    layer = build(fusible, fusion).to(like.device, like.dtype)
    bias = None
    if layer.bias is None:
        bias = torch.zeros(fusible.bias_shape).to(like) if fusion is None else fusion.bias.to(like)
    return replace_chain(network, fusible.chain, layer, flatten=fusible.request.flatten, pad=fusible.pad, bias=bias)


def build(fusible: Fusible, fusion: Fusion | None) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """The fused layer in float64; without a bias where that is a map."""
    outputs, inputs, *kernel = fusible.weight_shape
    patches = fusible.request.patches
    if patches is None:
        layer: nn.Linear | nn.Conv1d | nn.Conv2d = nn.Linear(inputs, outputs, dtype=torch.float64)
    else:
        options: dict[str, Any] = {"stride": patches.stride, "padding": fusible.padding, "groups": patches.groups}
        options["bias"] = len(fusible.bias_shape) == 1
        layer = CONVOLUTIONS[len(kernel)](
            inputs * patches.groups, outputs, tuple(kernel), **options, dtype=torch.float64
        )
    if fusion is not None:
        with torch.no_grad():
            layer.weight.copy_(fusion.weight.reshape(fusible.weight_shape))
            if layer.bias is not None:
                layer.bias.copy_(fusion.bias)
    return layer
