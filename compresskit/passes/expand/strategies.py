"""How a layer is written as factors: a small class for each strategy of ExpandNets, and for the rival it names."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

from compresskit.graph.layers.expanded import Branch, Factor

IMAGE_CHANNELS = (1, 3)  # of images


@dataclass(frozen=True)
class LayerShape:
    """inputs, outputs: of one group. taps: () for a linear layer.

    keeps_image: whether it reads the network's input, and its first factor is to keep an image's channels. factors:
    matrices of a linear layer, None where none are asked for.
    """

    inputs: int
    outputs: int
    groups: int
    taps: tuple[int, ...]
    keeps_image: bool
    factors: int | None = 2


class Unfit(Exception):
    """A strategy cannot write this layer; the message is the reason."""


class Strategy(Protocol):
    """branches: raises Unfit where it cannot be used. linear: for linear layers; else for convolutions.

    norms: whether a batch norm is behind each branch, in the place of the one behind the layer.
    """

    @property
    def linear(self) -> bool: ...

    @property
    def norms(self) -> bool: ...

    def branches(self, shape: LayerShape, rate: float) -> tuple[Branch, ...]: ...


class ConvolutionalLayers:
    """CL: 1x1, k x k, 1x1 with r m and r n channels between them, within each group (ExpandNets, section 3.1)."""

    linear, norms = False, False

    def branches(self, shape: LayerShape, rate: float) -> tuple[Branch, ...]:
        one = (1,) * len(shape.taps)
        return (
            (
                (_first_width(shape, rate), one),
                (_width(shape, rate), shape.taps),
                (shape.groups * shape.outputs, one),
            ),
        )


class ConvolutionalKernels:
    """CK: l = (k - 1) / 2 convolutions of 3 taps a side, with r m channels behind the first, r n behind the others.

    A side of k' < k taps, odd as well, has its 3s in the first factors and 1s in the rest (ExpandNets, eq. 3).
    """

    linear, norms = False, False

    def branches(self, shape: LayerShape, rate: float) -> tuple[Branch, ...]:
        length = (max(shape.taps) - 1) // 2
        if any(taps % 2 == 0 for taps in shape.taps) or length < 2:
            kernel = "x".join(map(str, shape.taps))
            raise Unfit(f"ck takes odd kernels larger than 3, and its kernel is {kernel}; use cl")
        taps = [tuple(3 if number < (k - 1) // 2 else 1 for k in shape.taps) for number in range(length)]
        widths = [_first_width(shape, rate), *[_width(shape, rate)] * (length - 2), shape.groups * shape.outputs]
        return (tuple(zip(widths, taps, strict=True)),)


class FullyConnected:
    """FC: two matrices with r m rows between them, or three with r m and r n (ExpandNets, eq. 4; Arora et al. 2018)."""

    linear, norms = True, False

    def branches(self, shape: LayerShape, rate: float) -> tuple[Branch, ...]:
        if shape.factors is None:
            raise Unfit("no selector of `factors` names it")
        between: list[Factor] = [(_scaled(rate, shape.inputs), ())]
        if shape.factors == 3:
            between.append((_scaled(rate, shape.outputs), ()))
        return ((*between, (shape.outputs, ())),)


@dataclass(frozen=True)
class AsymmetricBranches:
    """ACNet (Ding et al. 2019): the kernel plus one with a single row and one with a single column of it. No rate.

    norms: as they have it, with a batch norm behind each branch. Else the net's own follows the sum.
    """

    norms: bool
    linear = False

    def branches(self, shape: LayerShape, rate: float) -> tuple[Branch, ...]:
        if sum(taps > 1 for taps in shape.taps) < 2:
            raise Unfit("acnet takes kernels with several taps along two sides at least; use cl")
        if any(taps % 2 == 0 for taps in shape.taps):
            raise Unfit("acnet takes kernels with a middle, of an odd number of taps along every side; use cl")
        width = shape.groups * shape.outputs
        slices = [
            tuple(1 if side == thin else k for side, k in enumerate(shape.taps)) for thin in range(len(shape.taps))
        ]
        return (((width, shape.taps),), *(((width, taps),) for taps in slices if prod(taps) < prod(shape.taps)))


def _scaled(rate: float, channels: int) -> int:
    return max(1, round(rate * channels))


def _width(shape: LayerShape, rate: float) -> int:
    return shape.groups * _scaled(rate, shape.outputs)


def _first_width(shape: LayerShape, rate: float) -> int:
    if shape.keeps_image and shape.groups * shape.inputs in IMAGE_CHANNELS:
        return shape.groups * shape.inputs
    return shape.groups * _scaled(rate, shape.inputs)


STRATEGIES: dict[str, Strategy] = {
    "cl": ConvolutionalLayers(),
    "ck": ConvolutionalKernels(),
    "fc": FullyConnected(),
    "acnet": AsymmetricBranches(norms=False),
    "acnet-bn": AsymmetricBranches(norms=True),
}
