"""Batches that a module from outside can be called with, found out by trying."""

from itertools import product
from typing import Any

import torch
from torch import nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.entry import Shape

_MOST = 3  # inputs for which every mixture of numbers and tokens is tried


def shapes_of(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """One for each input."""
    return shape if shape and isinstance(shape[0], tuple) else (shape,)  # type: ignore[return-value]


def batch_for(module: nn.Module, shape: Shape, types: tuple[torch.dtype, ...], count: int) -> Any:
    """A batch of `count` samples: normal numbers where the type is a floating one, whole numbers 0 and 1 elsewhere."""
    parameter = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(count)
    made = [
        torch.randn(count, *one, generator=generator).to(parameter.device, kind)
        if kind.is_floating_point
        else torch.randint(2, (count, *one), generator=generator).to(parameter.device, kind)
        for one, kind in zip(shapes_of(shape), types, strict=True)
    ]
    return made[0] if len(made) == 1 else tuple(made)


def types_for(module: nn.Module, shape: Shape) -> tuple[torch.dtype, ...]:
    """The type of each input for which the module, in eval mode, runs: that of its parameters, or int64 (tokens).

    Raises UnsupportedModelError, with what forward said to numbers, where it runs on none.
    """
    inputs = len(shapes_of(shape))
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    first: Exception | None = None
    for types in product((own, torch.int64), repeat=inputs) if inputs <= _MOST else [(own,) * inputs]:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                module(batch_for(module, shape, types, 2))
        except Exception as error:  # it is the user's code
            first = first or error
        else:
            return types
    raise UnsupportedModelError(
        f"{type(module).__name__}: forward does not run on two samples of shape {shape}: "
        f"{' '.join(str(first).split()) or type(first).__name__}"
    ) from first
