"""What exported networks take: an argument for each input, of any batch size."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.errors import UnsupportedModelError, first_line
from compresskit.graph.shapes import is_part

Batch = Tensor | tuple[Tensor, ...]
Read = Callable[[Any], Any]
ONE_SIZE = "forward makes a difference between batch sizes, and a file takes any"


def arguments_of(batch: Any) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def any_batch(arguments: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """The first dimension of all is one, of any size."""
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in arguments)


def separated(network: fx.GraphModule, inputs: Batch) -> fx.GraphModule:
    """The network in eval mode; one that takes a tuple with an argument for each of its tensors."""
    if not isinstance(inputs, tuple):
        return network.eval()
    made = fx.GraphModule(network, copy.deepcopy(network.graph))
    (whole,) = (node for node in made.graph.nodes if node.op == "placeholder")
    for place in range(len(inputs)):
        with made.graph.inserting_before(whole):
            argument = made.graph.placeholder(f"input_{place + 1}")
        for node in [node for node in whole.users if is_part(node, place)]:
            node.replace_all_uses_with(argument)
            made.graph.erase_node(node)
    made.graph.erase_node(whole)
    made.recompile()
    return made.eval()


@contextmanager
def converting(path: Path, what: str) -> Iterator[None]:
    """Raises UnsupportedModelError, with the first cause, where torch cannot make the format inside the block."""
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # its exporters have many kinds, which go on for pages
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = ONE_SIZE if "Constraints violated (batch)" in str(cause) else first_line(cause)
        raise UnsupportedModelError(
            f"{path}: torch cannot write this network as {what} ({why}); write .py instead"
        ) from error
