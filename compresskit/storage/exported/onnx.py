"""Networks as ONNX. Home of onnxruntime."""

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from compresskit.errors import RecipeError, UnsupportedModelError, first_line
from compresskit.graph.format.structure import in_structure
from compresskit.storage.atomic import atomic_write
from compresskit.storage.exported.batches import ONE_SIZE, Batch, Read, any_batch, arguments_of, converting, separated
from compresskit.storage.exported.metadata import as_texts, own_keys

LARGEST = 2**31 - 2**26  # bytes of weights in the file itself: one of Protobuf's has at most 2 GiB
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def data_of(path: Path) -> Path:
    """The file with the weights of an .onnx file that cannot hold them itself."""
    return path.with_name(f"{path.name}.data")


def write_onnx(network: fx.GraphModule, inputs: Batch, path: Path, told: dict[str, Any] | None = None) -> Read:
    """As `write_program`, an .onnx file; what it gives back runs in onnxruntime. Weights of more than LARGEST bytes go
    into a file beside it."""
    arguments, data = arguments_of(inputs), data_of(path)
    apart = sum(tensor.nbytes for tensor in network.state_dict().values()) > LARGEST
    with atomic_write(path) as temporary, without_log():
        try:
            with converting(path, "ONNX"):
                program = torch.onnx.export(
                    _in_order(separated(network, inputs)), arguments, temporary, dynamo=True,
                    dynamic_shapes=any_batch(arguments), external_data=apart, verbose=False,
                )  # fmt: skip
                _check_batches(program)
            tell(temporary, told or {}, data.name)
            data.unlink(missing_ok=True)  # of a file that this one replaces
            if apart:
                with atomic_write(data) as whole:
                    data_of(temporary).replace(whole)
            return _read_back(temporary, path)
        finally:
            data_of(temporary).unlink(missing_ok=True)


def _in_order(network: fx.GraphModule) -> fx.GraphModule:
    """With a copy of what attention gives, whose place in memory torch.onnx does not foretell: a view of it would fail.

    The copy is no operation of the file.
    """
    made = fx.GraphModule(network, copy.deepcopy(network.graph))
    for node in list(made.graph.nodes):
        if node.target is functional.scaled_dot_product_attention:
            with made.graph.inserting_after(node):
                whole = made.graph.call_function(torch.clone, (node,), {"memory_format": torch.contiguous_format})
            node.replace_all_uses_with(whole, lambda reader, whole=whole: reader is not whole)
    made.recompile()
    return made.eval()


def _check_batches(program: Any) -> None:
    """Raises ValueError where torch.onnx, which does not say so, wrote a program for batches of one size."""
    if any(isinstance(one.shape[0], int) for one in program.model.graph.inputs):
        raise ValueError(ONE_SIZE)


def _read_back(written: Path, path: Path) -> Read:
    """The network of what is to be the file `path`. Raises UnsupportedModelError where onnxruntime does not run it."""
    try:
        return read_onnx(written)
    except Exception as error:  # of onnxruntime's own kinds
        raise UnsupportedModelError(
            f"{path}: onnxruntime cannot run this network ({first_line(error)}); write .pt2 or .py"
        ) from error


def read_onnx(path: Path) -> Read:
    """The network of the file, in onnxruntime, with as many threads as torch has. It returns what the file tells under
    `outputs`, else one tensor, or a list."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = InferenceSession(path, options)
    names = [value.name for value in runtime.get_inputs()]
    told = own_keys(runtime.get_modelmeta().custom_metadata_map)
    structure = json.loads(told.get("outputs", "null"))

    def read(batch: Any) -> Any:
        given = zip(names, arguments_of(batch), strict=True)
        found = [torch.from_numpy(one) for one in runtime.run(None, {name: one.numpy() for name, one in given})]
        if structure is not None:
            return in_structure(found, structure)
        return found[0] if len(found) == 1 else found

    return read


def tell(path: Path, told: dict[str, Any], data: str = "") -> None:
    """Writes into the file what it is to tell of itself. data: name of the file beside it in which weights are."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, as_texts(told))
    for place in (pair for tensor in model.graph.initializer for pair in tensor.external_data):
        if place.key == "location":
            place.value = data
    onnx.save(model, path)


def check_onnx(where: str = "--out") -> None:
    """Raises RecipeError where a library is missing that writing or reading ONNX takes."""
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        raise RecipeError(
            f"{where}: an .onnx file needs {' and '.join(missing)}, not installed here; install compresskit[onnx], or "
            "take a .pt2 file, which torch alone loads"
        )


@contextmanager
def without_log() -> Iterator[None]:
    """The libraries behind torch.onnx tell of each of their steps."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
