"""State dicts (.safetensors, .pth): tensors alone, for the class that a network was made of."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, fx, nn

from compresskit.models.weights.files import Found, OwnCheckpoint, read_state
from compresskit.models.weights.fitting import put_weights
from compresskit.storage.atomic import atomic_write, write_tensors
from compresskit.storage.checkpoint import compact, load
from compresskit.storage.exported.metadata import as_texts

STATES = (".safetensors", ".pth")  # ends of the names of files
_OF_GRAPH = re.compile(r"_tensor_constant\d+")  # what forward computes of no weights, kept as a tensor of the graph
logger = logging.getLogger(__name__)


def state_of(network: fx.GraphModule) -> tuple[dict[str, Tensor], list[str]]:
    """Its state dict without the graph's own constants, which no class has, and their names."""
    state = {name: compact(tensor) for name, tensor in network.state_dict().items()}
    constants = [name for name in state if _OF_GRAPH.fullmatch(name)]
    return {name: tensor for name, tensor in state.items() if name not in constants}, constants


def write_state(state: Mapping[str, Tensor], path: Path, told: dict[str, Any]) -> None:
    """told: what a .safetensors file tells of the network, in its header."""
    if path.suffix == ".safetensors":
        with atomic_write(path) as temporary:
            temporary.write_bytes(save(_apart(state), {"format": "pt"} | as_texts(told)))
    else:
        write_tensors(path, state)


def load_state(path: Path | str, model: nn.Module | None = None, fresh: Collection[str] = ()) -> dict[str, Tensor]:
    """The state dict in a file: what `model.weights` of a recipe takes, or a checkpoint of compresskit.

    model: it is copied into that, and comes by its names; what was renamed, converted or left out is a warning.
    fresh: layers of the model that keep their own weights, whatever the file has: a classifier for other classes.
    Nothing in the file is run.
    Raises CheckpointError for a file that cannot be read, for names or shapes that differ from the model's, and for
    numbers that are not finite in the model's types, or differ between two names of one tensor; RecipeError for layers
    that the model has not, and UnsupportedModelError for a model whose tensors are not made yet (meta, LazyModules).
    """
    path = Path(path)
    found = _read(path)
    if model is not None:
        return put_weights(model, found, path, fresh=fresh)
    if found.notes:
        logger.warning("%s: %s", path, "; ".join(found.notes))
    return found.state


def _read(path: Path) -> Found:
    try:
        return read_state(path)
    except OwnCheckpoint:
        return Found(state_of(load(path).network)[0], [])


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each name with memory of its own, as the format wants it."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found
