"""Networks as files that other programs load: ExportedProgram (.pt2, for torch alone) and ONNX. Home of onnxruntime."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.shapes import is_part
from compresskit.storage.atomic import atomic_write

_ONNX = ("onnx", "onnxscript", "onnxruntime")
Batch = Tensor | tuple[Tensor, ...]
Read = Callable[[Any], Any]


def write_program(network: fx.GraphModule, inputs: Batch, path: Path) -> Read:
    """A .pt2 file with the network in eval mode, of batches of any size. Returns the network of the file read back.

    Of several inputs each is an argument of its own: input_1, input_2, ...
    inputs: a batch of two or more; of one, torch would take the batch size for a constant. They state the types, too.
    """
    arguments = _arguments(inputs)
    content = io.BytesIO()  # torch takes a path for its own only by the end of its name, which a temporary file lacks
    program = torch.export.export(_separate(network, inputs), arguments, dynamic_shapes=_any_batch(arguments))
    torch.export.save(program, content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 says so of its own
        read = torch.export.load(path).module()
    return lambda batch: read(*_arguments(batch))


def write_onnx(network: fx.GraphModule, inputs: Batch, path: Path) -> Read:
    """As `write_program`, an .onnx file; what it gives back runs in onnxruntime."""
    arguments = _arguments(inputs)
    with atomic_write(path) as temporary, _without_log():
        torch.onnx.export(
            _separate(network, inputs), arguments, temporary, dynamo=True, dynamic_shapes=_any_batch(arguments),
            external_data=False, verbose=False,
        )  # fmt: skip
    from onnxruntime import InferenceSession

    runtime = InferenceSession(path.read_bytes())
    names = [value.name for value in runtime.get_inputs()]

    def read(batch: Any) -> Any:
        given = zip(names, _arguments(batch), strict=True)
        found = [torch.from_numpy(one) for one in runtime.run(None, {name: one.numpy() for name, one in given})]
        return found[0] if len(found) == 1 else found

    return read


def check_onnx() -> None:
    """Raises RecipeError where a library is missing that writing or reading ONNX takes."""
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        raise RecipeError(
            f"--out: an .onnx file needs {' and '.join(missing)}, not installed here; install compresskit[onnx], or "
            "write a .pt2 file, which torch alone loads"
        )


def _arguments(batch: Any) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _any_batch(arguments: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """The first dimension of all is one, of any size."""
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in arguments)


def _separate(network: fx.GraphModule, inputs: Batch) -> fx.GraphModule:
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
def _without_log() -> Iterator[None]:
    """The libraries behind torch.onnx tell of each of their steps."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
