"""Weights that a model from outside starts with, and whether it fits the data."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compresskit.errors import CheckpointError, RecipeError

_SHOWN = 5  # names of tensors in a message
_KEYS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep it beside other things


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies a state dict into `model`: a .safetensors file, or one of torch.save, of which only tensors are read.

    Raises CheckpointError for a file that cannot be read and for names or shapes that differ.
    """
    state = read_state(path)
    wanted = model.state_dict()
    wrong = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    found = {
        "missing": [name for name in wanted if name not in state],
        "not in the model": [name for name in state if name not in wanted],
        "wrong shape": [f"{n} {tuple(state[n].shape)} for {tuple(wanted[n].shape)}" for n in wrong],
    }
    if problems := [f"{what}: {', '.join(names[:_SHOWN])}" for what, names in found.items() if names]:
        raise CheckpointError(f"{path}: the weights do not fit the model; {'; '.join(problems)}")
    model.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one of torch.save, where it may lie under one of the usual keys.

    Raises CheckpointError for a file that cannot be read or that holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; `weights` is a path to a state dict") from error
    except Exception as error:  # what is no state dict can fail in any way when it is read as one
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: no state dict can be read from it ({reason}); save one with torch.save(model.state_dict(), path)"
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in _KEYS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: it holds more than a state dict; save model.state_dict() alone, and give a checkpoint of "
            "compresskit to --checkpoint"
        )
    return state


def check_fit(model: nn.Module, name: str, input_shape: tuple[int, ...], outputs: int) -> None:
    """Runs one sample of zeros through a model from outside. Raises RecipeError where it does not fit the data."""
    training = model.training
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            value = model.eval()(torch.zeros(1, *input_shape, dtype=parameter.dtype))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"model: {name} does not take the data's inputs of shape {input_shape}: {reason}") from error
    finally:
        model.train(training)
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape != (1, outputs):
        raise RecipeError(f"model: {name} returns {shape} for one sample, the data need (1, {outputs})")
