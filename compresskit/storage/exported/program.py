"""Networks as ExportedProgram (.pt2), which torch alone runs."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compresskit.storage.atomic import atomic_write
from compresskit.storage.exported.batches import Batch, Read, any_batch, arguments_of, converting, separated
from compresskit.storage.exported.metadata import FILE


def write_program(network: fx.GraphModule, inputs: Batch, path: Path, told: dict[str, Any] | None = None) -> Read:
    """A .pt2 file with the network in eval mode, of batches of any size. Returns the network of the file read back.

    Of several inputs each is an argument of its own: input_1, input_2, ...
    inputs: a batch of two or more; of one, torch would take the batch size for a constant. They state the types, too.
    told: what the file tells of itself, see `metadata`.
    """
    arguments = arguments_of(inputs)
    content = io.BytesIO()  # torch takes a path for its own only by the end of its name, which a temporary file lacks
    with converting(path, "a program"):
        program = torch.export.export(separated(network, inputs), arguments, dynamic_shapes=any_batch(arguments))
    torch.export.save(program, content, extra_files={FILE: json.dumps(told or {})})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
    return read_program(path)


def read_program(path: Path) -> Read:
    """The network of the file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 says so of its own
        read = torch.export.load(path).module()
    return lambda batch: read(*arguments_of(batch))
