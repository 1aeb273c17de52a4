"""Networks as Python source (.py) with their weights beside it (.safetensors), which torch alone runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import fx

from compresskit import __version__
from compresskit.errors import UnsupportedModelError
from compresskit.graph.format.table import named_tensors
from compresskit.graph.shapes import node_shapes
from compresskit.graph.source.write import written
from compresskit.shapes import Shape
from compresskit.storage.atomic import atomic_write
from compresskit.storage.exported.batches import Batch, Read, arguments_of, separated


def weights_of(path: Path) -> Path:
    """The file with the weights of a .py file."""
    return path.with_suffix(".safetensors")


def write_source(
    network: fx.GraphModule, input_shape: Shape, inputs: Batch, path: Path, takes: str, constants: Mapping[str, Any]
) -> Read:
    """A .py file with a class Net and its weights beside it. Returns the network of the files read back.

    inputs: a batch. takes: a line on what the network takes. constants: by name, what is to be known beside.
    """
    apart = separated(network, inputs)
    try:
        shapes = node_shapes(network, input_shape)
    except UnsupportedModelError:  # of one sample; they are comments alone
        shapes = {}
    weights = weights_of(path)
    text = written(apart, weights.name, f"Written by compresskit {__version__}.", takes, shapes, constants)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named_tensors(apart)
    }
    with atomic_write(weights) as temporary:
        temporary.write_bytes(save(tensors))
    with atomic_write(path) as temporary:
        temporary.write_text(text)
    return _read(path)


def _read(path: Path) -> Read:
    """The network of the written file, which is run as another program would."""
    found: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), found)
    network = found["Net"].from_file()
    return lambda batch: network(*arguments_of(batch))
