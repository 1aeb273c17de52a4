"""What an exported network takes: a batch to try it on, and what is told of it in the file and in the report."""

from typing import Any

import torch
from torch import Tensor, nn

from compresskit.graph.format.structure import structure_of
from compresskit.graph.shapes import example, tokens
from compresskit.numerics.outputs import largest_difference
from compresskit.storage.checkpoint import Checkpoint

BATCH = 8  # samples of the batch that outputs are compared on, and that is timed
_BYTES = 255.0


def batch_of(original: Checkpoint) -> Any:
    """Random inputs. Tokens are int64, as data give them, where the network makes the same of them as of numbers."""
    network, shape = original.network, original.input_shape
    inputs = example(network, shape, BATCH, torch.Generator().manual_seed(0))
    several = isinstance(inputs, tuple)
    each = inputs if several else (inputs,)
    looked_up = [tokens(network, place if several else None) is not None for place in range(len(each))]
    whole = tuple(one.long() if token else one for one, token in zip(each, looked_up, strict=True))
    given = whole if several else whole[0]
    try:
        with torch.inference_mode():
            return given if largest_difference(network(given), network(inputs)) == 0 else inputs
    except RuntimeError:  # it reads them as numbers elsewhere
        return inputs


def unit_of(original: Checkpoint) -> float | None:
    """What stored inputs are divided by before they are normalised; None where the checkpoint does not tell."""
    of_bytes = original.preprocessing.get("bytes")
    return None if of_bytes is None or len(of_bytes) != 1 else (_BYTES if of_bytes[0] else 1.0)


def stored(original: Checkpoint, inputs: Tensor) -> tuple[Tensor, float]:
    """A batch as data store it, for one that is normalised, and what it is divided by.

    Images whose checkpoint does not tell are taken for bytes.
    """
    unit = unit_of(original) or (_BYTES if inputs.ndim == 4 else 1.0)
    if unit == 1:
        return inputs, unit
    return torch.randint(256, inputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8), unit


def taken(inputs: Any) -> list[str]:
    """A line on the arguments that the network takes, where they are not one tensor of numbers."""
    several = isinstance(inputs, tuple)
    return [] if not several and inputs.is_floating_point() else [f"takes {said_of(inputs)}"]


def said_of(inputs: Any) -> str:
    """Types and shapes of the arguments."""
    several = isinstance(inputs, tuple)
    each = inputs if several else (inputs,)
    told = [f"{_type(one)} (N, {', '.join(map(str, one.shape[1:]))})" for one in each]
    return ", ".join(f"input_{place} {one}" for place, one in enumerate(told, 1)) if several else told[0]


def told_of(original: Checkpoint, inputs: Any, *, inside: bool, probabilities: bool) -> dict[str, Any]:
    """What a file tells of itself, as `storage.exported.metadata` has it.

    (x scale - mean) / std by channel is what the network takes, if it does not do that itself: inside.
    """
    each = inputs if isinstance(inputs, tuple) else (inputs,)
    told: dict[str, Any] = {
        "task": original.task,
        "inputs": [{"type": _type(one), "shape": ["N", *one.shape[1:]]} for one in each],
    }
    told |= {key: original.preprocessing[key] for key in ("mean", "std", "classes") if original.preprocessing.get(key)}
    unit = unit_of(original)
    if inside and unit is None:
        unit = _BYTES if inputs.dtype == torch.uint8 else 1.0
    told |= {"scale": 1 / unit} if unit is not None else {}
    return told | {"normalised_inside": inside, "probabilities": probabilities}


def outputs_told(network: nn.Module, inputs: Any) -> dict[str, Any]:
    """Where each tensor stands in the lists or mappings that the network returns, of which an .onnx file has a row."""
    with torch.inference_mode():
        structure = structure_of(network(inputs))
    return {} if structure is None else {"outputs": structure}


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
