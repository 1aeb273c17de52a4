"""Weights that a model from outside starts with, and whether it fits the data."""

import warnings
from pathlib import Path
from stat import S_ISREG

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compresskit.errors import CheckpointError

_SHOWN = 5  # names of tensors in a message
_KEYS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep it beside other things


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies a state dict into `model`: a .safetensors file, or one of torch.save, of which only tensors are read.

    Raises CheckpointError for a file that cannot be read and for names or shapes that differ.
    """
    state = read_state(path)
    wanted = model.state_dict()
    both = [name for name in wanted if name in state]
    wrong = [n for n in both if state[n].shape != wanted[n].shape]
    kinds = [n for n in both if state[n].is_floating_point() != wanted[n].is_floating_point()]
    found = {
        "missing": [name for name in wanted if name not in state],
        "not in the model": [name for name in state if name not in wanted],
        "wrong shape": [f"{n} {tuple(state[n].shape)} for {tuple(wanted[n].shape)}" for n in wrong],
        "wrong type": [f"{n} {state[n].dtype} for {wanted[n].dtype}" for n in kinds],
    }
    if problems := [f"{what}: {', '.join(names[:_SHOWN])}" for what, names in found.items() if names]:
        raise CheckpointError(f"{path}: the weights do not fit the model; {'; '.join(problems)}")
    model.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one of torch.save, where it may lie under one of the usual keys.

    Raises CheckpointError for a file that cannot be read or that holds no state dict.
    """
    try:
        if not S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise CheckpointError(f"{path}: it is no file but a folder, a pipe or a device; name a state dict")
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of kinds of tensors that are refused below
                state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; `weights` is a path to a state dict") from error
    except Exception as error:  # what is no state dict can fail in any way when it is read as one
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: no state dict can be read from it ({reason}); save one with torch.save(model.state_dict(), path)"
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in _KEYS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path}: it holds more than a state dict; save model.state_dict() alone, and give a checkpoint of "
            "compresskit to --checkpoint"
        )
    if strange := [f"{name} ({told(value)})" for name, value in state.items() if not is_plain(value)]:
        raise CheckpointError(
            f"{path}: layers take dense numbers of 16, 32 or 64 bits, not {', '.join(strange[:_SHOWN])}; convert them "
            "before saving"
        )
    return state


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor with all of its numbers, of a type that layers compute in."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and not value.is_quantized
        and not value.is_complex()
        and value.element_size() > (1 if value.is_floating_point() else 0)  # no float8
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()  # no strides of 0
    )


def told(tensor: Tensor) -> str:
    """Its type and kind in a few words."""
    kind = "on meta" if tensor.device.type == "meta" else str(tensor.layout).removeprefix("torch.")
    return f"{str(tensor.dtype).removeprefix('torch.')}, {kind}"
