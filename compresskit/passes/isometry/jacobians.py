"""Jacobians of parts of a network at several images at once, formed or known by products alone.

A function takes (images, *shape) to (images, *other shape) and treats images apart, as networks do in eval mode. m and
n are the numbers of its outputs and inputs for one image. All in float64.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from compresskit.numerics.orthogonal.isometry import SingularValues, quadrature

Function = Callable[[Tensor], Tensor]

_MEMORY = 1 << 25  # bytes of all inputs of one call: values inside a network may take a hundred times as much
_BYTES = 8


def jacobian(function: Function, inputs: Tensor) -> Tensor:
    """(images, m, n), by m products with its transpose, or by n with itself where they are fewer."""
    outputs = function(inputs.clone())
    m, n = (prod(values.shape[1:]) for values in (outputs, inputs))
    if m <= n:
        return pull(function, inputs, _units(m, outputs)).flatten(2).transpose(0, 1)
    return push(function, inputs, _units(n, inputs)).flatten(2).permute(1, 2, 0)


def push_columns(function: Function, inputs: Tensor, columns: Tensor) -> Tensor:
    """(images, m, k): the Jacobian times columns (images, n, k) of each image's own."""
    tangents = columns.permute(2, 0, 1).reshape(-1, *inputs.shape)
    return push(function, inputs, tangents).flatten(2).permute(1, 2, 0)


def push(function: Function, inputs: Tensor, tangents: Tensor) -> Tensor:
    """(k, images, *outputs): J t for each of k tangents (k, images, *inputs).

    u -> J^T u is linear, and its own transposed is J: so modules need not know forward differentiation.
    """
    outputs, transposed = _vjp(function, inputs)
    _, direct = _vjp(transposed, torch.zeros_like(outputs))
    return _mapped(direct, tangents, inputs)


def pull(function: Function, inputs: Tensor, directions: Tensor) -> Tensor:
    """(k, images, *inputs): J^T u for each of k directions (k, images, *outputs)."""
    return _mapped(_vjp(function, inputs)[1], directions, inputs)


def estimated(
    function: Function, inputs: Tensor, probes: int, steps: int, generator: torch.Generator
) -> SingularValues:
    """Density of the singular values at each image, by quadrature from `probes` random signs; a row for each."""
    outputs = function(inputs.clone())
    wide = prod(outputs.shape[1:]) > prod(inputs.shape[1:])
    shape = (inputs if wide else outputs).shape

    def apply(rows: Tensor) -> Tensor:
        values = rows.view(probes, *shape)
        if wide:
            return pull(function, inputs, push(function, inputs, values)).reshape(rows.shape)
        return push(function, inputs, pull(function, inputs, values)).reshape(rows.shape)

    signs = torch.randint(2, (probes * len(inputs), prod(shape[1:])), generator=generator)
    return quadrature(apply, (2.0 * signs - 1).to(inputs), steps)


def _vjp(function: Function, at: Tensor) -> tuple[Tensor, Function]:
    """The function's value, and what takes u to J^T u. Its argument is left alone, even by a ReLU in place."""
    found: Any = torch.func.vjp(lambda value: function(value.clone()), at)
    value, transposed = found
    return value, lambda direction: transposed(direction)[0]


def _mapped(product: Function, vectors: Tensor, inputs: Tensor) -> Tensor:
    """The product with each of the vectors, as many at once as memory allows."""
    at_once = max(1, _MEMORY // (_BYTES * inputs.numel()))
    found: Tensor = torch.func.vmap(product, chunk_size=at_once)(vectors)
    return found


def _units(count: int, like: Tensor) -> Tensor:
    """(count, *like) unit vectors, the same for each image."""
    units = torch.eye(count, dtype=like.dtype, device=like.device).view(count, 1, *like.shape[1:])
    return units.expand(count, *like.shape)
