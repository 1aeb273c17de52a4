"""Products of linear layers: a chain of convolutions, or of matrices, multiplied into the one that does the same.

A kernel is (groups, out, *taps, in): out and in channels of one group. A matrix is a kernel without taps.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, ...]  # of a kernel: (groups, out, *taps, in)
Order = int | tuple["Order", "Order"]  # number of a factor, or a product: (earlier layers, later layers)


def to_kernel(weight: Tensor, groups: int = 1) -> Tensor:
    """Kernel (groups, out, *taps, in) of a layer's weight (groups out, in, *taps); a view."""
    kernel: Tensor = weight.unflatten(0, (groups, -1))
    return kernel.movedim(2, -1)


def to_weight(kernel: Tensor) -> Tensor:
    """Weight (groups out, in, *taps) of a layer with this kernel; the inverse of `to_kernel`."""
    return kernel.movedim(-1, 2).flatten(0, 1).contiguous()


def compose(second: Tensor, first: Tensor) -> Tensor:
    """Kernel of the convolution that does `first`, then `second`, both without padding and with a stride of 1:

    K[t] = sum over a + b = t of second[a] first[b], a product of matrices within each group.

    second: (groups, out, *a, mid). first: (groups, mid, *b, in), with as many tap dimensions. K: (groups, out,
    *(a + b - 1), in). All pairs of taps are one product of a matrix (out prod(a), mid) with one of (mid, prod(b) in),
    whose rows are then added up by t. Where `second` has one tap, `first` is read and K is written in the layout of a
    layer's weight, so that the largest factor and its gradient are not copied. Source: ExpandNets, eq. 2 and 3.
    """
    groups, out, *a, mid = second.shape
    *b, inputs = first.shape[2:]
    if prod(a) == 1:
        columns = first.movedim(-1, 2).reshape(groups, mid, -1)
        return torch.bmm(second.reshape(groups, out, mid), columns).view(groups, out, inputs, *b).movedim(2, -1)
    pairs = torch.bmm(second.reshape(groups, -1, mid), first.reshape(groups, mid, -1))
    taps = _added(a, b)
    if prod(b) > 1:  # else each pair is a tap of its own
        pairs = _added_up(pairs.view(groups * out, *a, *b, inputs), len(a))
    return pairs.view(groups, out, *taps, inputs)


def _added_up(pairs: Tensor, dims: int) -> Tensor:
    """(n, *(a + b - 1), in) of (n, *a, *b, in), `dims` taps each: pairs of taps with the same sum, added up."""
    # On a GPU, adding by index adds in any order, or, where results must repeat, waits for the device.
    return _added_by_shifts(pairs, dims) if pairs.device.type == "cuda" else _added_by_index(pairs, dims)


def _added_by_index(pairs: Tensor, dims: int) -> Tensor:
    n, *taps, inputs = pairs.shape
    a, b = tuple(taps[:dims]), tuple(taps[dims:])
    zeros = pairs.new_zeros(n, prod(_added(a, b)), inputs)
    return zeros.index_add(1, _sums(a, b, pairs.device), pairs.flatten(1, -2)).view(n, *_added(a, b), inputs)


def _added_by_shifts(pairs: Tensor, dims: int) -> Tensor:
    a = pairs.shape[1 : 1 + dims]
    shifted = []
    for tap in np.ndindex(*a):
        margins = [m for first, x in zip(reversed(tap), reversed(a), strict=True) for m in (first, x - 1 - first)]
        shifted.append(functional.pad(pairs[:, *tap], [0, 0, *margins]))
    return reduce(torch.add, shifted)


def contract(
    kernels: Sequence[Tensor], biases: Sequence[Tensor | None], order: Order | None = None
) -> tuple[Tensor, Tensor | None]:
    """Kernel and bias of the one layer that does what the layers do one after another.

    kernels: first layer first, as for `compose`. biases: (groups out,) each, or None: b = sum over t of K[t] b_before +
    b_own, layer by layer; the result is None if no layer has one. It holds at a padded border, too, if the input alone
    is padded. order: of multiplication, from `cheapest_order`; default: that one.
    """
    bias: Tensor | None = None
    for kernel, own in zip(kernels, biases, strict=True):
        behind = None if bias is None else _through(kernel, bias)
        bias = own if behind is None else behind if own is None else own + behind
    return _multiply(kernels, cheapest_order([tuple(k.shape) for k in kernels]) if order is None else order), bias


def cheapest_order(shapes: Sequence[Shape]) -> Order:
    """Order of multiplication of a chain of kernels with the fewest multiply-adds, by dynamic programming.

    A product of kernels with a and b taps costs groups out a mid b in, and so does each of its two gradients: the order
    is the cheapest in training, too, where it costs three times as much. (Cormen et al., Introduction to Algorithms,
    matrix-chain multiplication, whose matrices have one tap.)
    """
    return _cheapest(shapes)[2]


def cost(shapes: Sequence[Shape]) -> int:
    """Multiply-adds of the product of a chain of kernels in its cheapest order."""
    return _cheapest(shapes)[0]


def _cheapest(shapes: Sequence[Shape]) -> tuple[int, Shape, Order]:
    """Cost, shape and order of the product."""
    best: dict[tuple[int, int], tuple[int, Shape, Order]] = {}
    for first, shape in enumerate(shapes):
        best[first, first + 1] = 0, tuple(shape), first
    for length in range(2, len(shapes) + 1):
        for first in range(len(shapes) - length + 1):
            last = first + length
            options = [_join(best[first, cut], best[cut, last]) for cut in range(first + 1, last)]
            best[first, last] = min(options, key=lambda option: option[0])
    return best[0, len(shapes)]


def _join(earlier: tuple[int, Shape, Order], later: tuple[int, Shape, Order]) -> tuple[int, Shape, Order]:
    """Cost, shape and order of the product of two parts of a chain."""
    (cost1, (_, _, *b, inputs), order1), (cost2, (groups, out, *a, mid), order2) = earlier, later
    own = groups * out * prod(a) * mid * prod(b) * inputs
    return cost1 + cost2 + own, (groups, out, *_added(a, b), inputs), (order1, order2)


def _multiply(kernels: Sequence[Tensor], order: Order) -> Tensor:
    if isinstance(order, int):
        return kernels[order]
    earlier, later = order
    return compose(_multiply(kernels, later), _multiply(kernels, earlier))


def _through(kernel: Tensor, bias: Tensor) -> Tensor:
    """What a bias (groups mid,) before the kernel gives behind it."""
    groups, out, *taps, mid = kernel.shape
    summed = kernel.sum(tuple(range(2, 2 + len(taps)))) if taps else kernel
    return torch.bmm(summed, bias.view(groups, mid, 1)).flatten()


def _added(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x + y - 1 for x, y in zip(a, b, strict=True))


_SUMS: dict[tuple[tuple[int, ...], tuple[int, ...], torch.device], Tensor] = {}  # found once


def _sums(a: tuple[int, ...], b: tuple[int, ...], device: torch.device) -> Tensor:
    """Number of the tap a + b for each pair of taps, those of b fastest."""
    if (a, b, device) not in _SUMS:
        taps = _added(a, b)
        found = []
        for first, second in product(product(*map(range, a)), product(*map(range, b))):
            index = 0
            for x, y, size in zip(first, second, taps, strict=True):
                index = index * size + x + y
            found.append(index)
        with torch.inference_mode(False):  # else training could not use what an evaluation left here
            _SUMS[a, b, device] = torch.tensor(found, device=device)
    return _SUMS[a, b, device]
