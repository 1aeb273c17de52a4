"""How a module from outside is called: with what, and which of the values that it returns is meant."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import RecipeError, UnsupportedModelError
from compresskit.shapes import Shape, shapes_of

TAKES_TUPLE = "_takes_one_tuple"  # an attribute of modules whose several inputs are one argument
_MOST = 3  # inputs for which every mixture of numbers and tokens is tried


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


def called(module: nn.Module, batch: Any) -> Any:
    """What forward returns; of several inputs each is an argument of its own, unless the module takes one tuple."""
    return module(*batch) if isinstance(batch, tuple) and not hasattr(module, TAKES_TUPLE) else module(batch)


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
                called(module, batch_for(module, shape, types, 1))
        except Exception as error:  # it is the user's code
            first = first or error
        else:
            return types
    raise UnsupportedModelError(
        f"{type(module).__name__}: forward does not run on a sample of shape {shape}: "
        f"{' '.join(str(first).split()) or type(first).__name__}"
    ) from first


def picked(value: Any, output: str | int | None) -> Any:
    """One tensor of what forward returned; the first where nothing is asked for. KeyError where there is no such."""
    if output is None:
        while isinstance(value, list | tuple | Mapping) and len(value):
            value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
        return value
    if isinstance(output, str) and not isinstance(value, Mapping):
        return getattr(value, output)
    return value[output]


def names_of(value: Any) -> str:
    """What can be picked from it, in words."""
    if isinstance(value, Mapping):
        return " or ".join(map(str, value))
    fields: Sequence[str] = getattr(value, "_fields", ())
    return " or ".join(fields or map(str, range(len(value)))) if isinstance(value, list | tuple) else "nothing"


def check_fit(model: nn.Module, name: str, shape: Shape, outputs: int, output: str | int | None = None) -> None:
    """Runs a sample through a model from outside. outputs: 0 takes whatever it returns, but for `output`.

    Raises RecipeError where it does not fit the data.
    """
    training, inputs = model.training, shapes_of(shape)
    model.eval()
    try:
        types = types_for(model, shape)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            value = called(model, batch_for(model, shape, types, 1))
    except UnsupportedModelError as error:
        reason = " ".join(str(error.__cause__).split())
        what = f"inputs of shape {shape}" if len(inputs) == 1 else f"{len(inputs)} inputs of shapes {shape}"
        raise RecipeError(f"model: {name} does not take the data's {what}: {reason}") from error
    finally:
        model.train(training)
    try:
        found = value if output is None else picked(value, output)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise RecipeError(f"model.output: {name} returns no {output!r}; choose {names_of(value)}") from error
    if outputs == 0:
        return
    if not isinstance(found, Tensor) and output is None:
        kind = type(found).__name__
        raise RecipeError(
            f"model: {name} returns a {kind}; choose one of its values by model.output: {names_of(found)}"
        )
    made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if made != (1, outputs):
        raise RecipeError(f"model: {name} returns {made} for one sample, the data need (1, {outputs})")
