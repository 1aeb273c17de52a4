"""Networks as files that other programs load: ExportedProgram (.pt2, for torch alone) and ONNX. Home of onnxruntime."""

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
from compresskit.storage.atomic import atomic_write

_ONNX = ("onnx", "onnxscript", "onnxruntime")
Read = Callable[[Tensor], Tensor]


def write_program(network: fx.GraphModule, inputs: Tensor, path: Path) -> Read:
    """A .pt2 file with the network in eval mode, of batches of any size. Returns the network of the file read back.

    inputs: a batch of two or more; of one, torch would take the batch size for a constant.
    """
    content = io.BytesIO()  # torch takes a path for its own only by the end of its name, which a temporary file lacks
    program = torch.export.export(network.eval(), (inputs,), dynamic_shapes=_any_batch())
    torch.export.save(program, content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 says so of its own
        read: Read = torch.export.load(path).module()
    return read


def write_onnx(network: fx.GraphModule, inputs: Tensor, path: Path) -> Read:
    """As `write_program`, an .onnx file; what it gives back runs in onnxruntime."""
    with atomic_write(path) as temporary, _without_log():
        torch.onnx.export(
            network.eval(), (inputs,), temporary, dynamo=True, dynamic_shapes=_any_batch(), external_data=False,
            verbose=False,
        )  # fmt: skip
    from onnxruntime import InferenceSession

    runtime = InferenceSession(path.read_bytes())
    (name,) = (value.name for value in runtime.get_inputs())
    return lambda batch: torch.from_numpy(runtime.run(None, {name: batch.numpy()})[0])


def check_onnx() -> None:
    """Raises RecipeError where a library is missing that writing or reading ONNX takes."""
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        raise RecipeError(
            f"--out: an .onnx file needs {' and '.join(missing)}, not installed here; install compresskit[onnx], or "
            "write a .pt2 file, which torch alone loads"
        )


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


@contextmanager
def _without_log() -> Iterator[None]:
    """The libraries behind torch.onnx tell of each of their steps."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
