"""A graph that was read from a file is run once without numbers, so that what cannot run is refused by its node."""

import operator
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compresskit.errors import CheckpointError, first_line
from compresskit.graph.layers.plain import known_value
from compresskit.shapes import Shape, shapes_of

NUMBERS = 2**31  # that a value of one sample may have
INTEGERS = 2**63  # that a value of Python's may reach
EXPONENT = 64
_REPEATS = (operator.mul, operator.imul)


class _Rehearsal(fx.Interpreter):
    """On torch's meta device, where tensors have shapes and types alone."""

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except CheckpointError:
            raise
        except NotImplementedError:
            raise  # torch has no rule for it without numbers
        except Exception as error:  # whatever the damaged argument of a node makes of it
            raise CheckpointError(f"node {n.name} ({_called(n)}) cannot run: {first_line(error)}") from error
        _check_size(n, value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = known_value(self.fetch_attr(target), args, kwargs)
        return super().call_module(target, args, kwargs) if known is None else known

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Without the arithmetic of whole numbers that takes for ever, and lists that are repeated without end."""
        if target is operator.pow and all(isinstance(arg, int) for arg in args) and abs(args[1]) > EXPONENT:
            raise ValueError(f"a power of {args[1]} is not taken")
        if target in _REPEATS and any(isinstance(arg, list | tuple | str) for arg in args):
            raise ValueError("a list is not multiplied")
        here = {"device": "meta"} if "device" in kwargs else {}
        return super().call_function(target, args, kwargs | here)


def rehearse(network: fx.GraphModule, input_shape: Shape, *, whole: bool = False) -> None:
    """Runs `network`, whose tensors are on the meta device, on one sample of this shape; of each type that fits.

    whole: it may return tensors of any structure and shape, but some. Raises CheckpointError with the node that cannot
    run, whose value is too large, or that does not give a batch.
    """
    refused: CheckpointError | None = None
    for sample in _samples(network, shapes_of(input_shape)):
        try:
            with torch.no_grad(), torch.device("meta"):
                output = _Rehearsal(network, garbage_collect_values=True).run(sample)
        except NotImplementedError:
            return
        except CheckpointError as error:
            refused = refused or error
        else:
            break
    else:
        assert refused is not None
        raise refused
    if whole:
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output)):
            raise CheckpointError(f"its output is a {type(output).__name__} without a tensor")
        return
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[0] != 1:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise CheckpointError(f"its output for one sample is {shape}, and a batch of outputs is wanted")


def _samples(network: fx.GraphModule, shapes: tuple[tuple[int, ...], ...]) -> Iterator[Any]:
    """Of one sample, what it may be called with: tokens first where something looks them up, numbers first elsewhere.

    A network with one input is called with what is likely alone, so that the first refusal is the right one.
    """
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    looks_up = any(isinstance(module, torch.nn.Embedding) for module in network.modules())
    kinds = (torch.int64, parameter.dtype) if looks_up else (parameter.dtype, torch.int64)
    if len(shapes) == 1:
        yield torch.zeros(1, *shapes[0], dtype=kinds[0], device="meta")
        return
    for types in product(kinds, repeat=len(shapes)):
        made = zip(shapes, types, strict=True)
        yield tuple(torch.zeros(1, *shape, dtype=kind, device="meta") for shape, kind in made)


def _check_size(node: fx.Node, value: Any) -> None:
    values = value if isinstance(value, list | tuple) else (value,)
    for one in values:
        if isinstance(one, Tensor) and one.numel() > NUMBERS:
            raise CheckpointError(
                f"node {node.name} ({_called(node)}) makes {one.numel():,} numbers of one sample, at most {NUMBERS:,} "
                "are allowed"
            )
        if isinstance(one, int) and abs(one) >= INTEGERS:
            raise CheckpointError(f"node {node.name} ({_called(node)}) makes a whole number of more than 64 bits")


def _called(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))
