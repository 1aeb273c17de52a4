"""Whether the numbers of a file can be those of a model: finite, within its types, and equal where tensors are tied."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compresskit.errors import CheckpointError, UnsupportedModelError

_SHOWN = 5  # names of tensors in a message


def check_numbers(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError where tensors of the file hold NaN, infinity, or numbers beyond the model's type.

    own: the model's tensors by name. What the model itself has there (the -inf of a mask) may stand in the file.
    """
    ruined, beyond = [], []
    for name, given in state.items():
        bad = _unfit(given, own[name])
        if not (count := int(bad.sum())):
            continue
        told = f"{name} ({count:,} of {bad.numel():,} numbers"
        if bool(given[bad].isfinite().all()):
            beyond.append(f"{told}, for {str(own[name].dtype).removeprefix('torch.')})")
        else:
            ruined.append(f"{told})")
    if ruined:
        raise CheckpointError(
            f"{path}: {_some(ruined)} {_hold(ruined)} NaN or infinity; take a checkpoint from before the training went "
            "wrong"
        )
    if beyond:
        raise CheckpointError(
            f"{path}: {_some(beyond)} {_hold(beyond)} numbers too large for the model's type; scale them "
            "down, or take another copy"
        )


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, of its very tensors; without what modules add to it that is none (`get_extra_state`)."""
    return {name: own for name, own in model.state_dict(keep_vars=True).items() if isinstance(own, Tensor)}


def unstored_buffers(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the buffers that the model makes itself, and that are not in its state dict (persistent=False)."""
    stored = own_tensors(model)
    return {name: own.shape for name, own in model.named_buffers(remove_duplicate=False) if name not in stored}


def as_stored(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict with each of the names that the model has for one tensor, and without the buffers that the model
    makes itself; and the names of these."""
    unstored = [name for name in unstored_buffers(model) if name in state]
    pairs = [pair for name, first in twins(model).items() for pair in ((name, first), (first, name))]
    others = {name: state[other] for name, other in pairs if name not in state and other in state}
    return {name: tensor for name, tensor in state.items() if name not in unstored} | others, unstored


def check_made(model: nn.Module) -> None:
    """Raises UnsupportedModelError where there is nothing in memory to copy numbers into."""
    for name, own in own_tensors(model).items():
        if is_lazy(own) or own.device.type == "meta":
            why = "its LazyModule has seen no batch" if is_lazy(own) else "it is on the device meta"
            raise UnsupportedModelError(
                f"{name} of the model has no numbers ({why}); run a batch through it, or make it on the CPU, first"
            )


def twins(model: nn.Module) -> dict[str, str]:
    """By name in the state dict, the first name of the same numbers in memory, where there are several names."""
    first: dict[object, str] = {}
    found: dict[str, str] = {}
    for name, tensor in own_tensors(model).items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else id(tensor)
        if (other := first.setdefault(place, name)) != name:
            found[name] = other
    return found


def check_ties(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError where the file has different values for two names of one tensor."""
    given: dict[str, str] = {}  # by first name in the model, the first of its names that the file has
    own, first = own_tensors(model), twins(model)
    for name in own:
        if name not in state:
            continue
        other = given.setdefault(first.get(name, name), name)
        if not _are_equal(state[other].to(own[name].dtype), state[name].to(own[name].dtype)):
            raise CheckpointError(
                f"{path}: {other} and {name} are one tensor in the model, and differ in the file; take another copy"
            )


def _unfit(given: Tensor, own: Tensor) -> Tensor:
    """Where the model's type has no finite number for that of the file, and the model itself has another one."""
    cast = given.to(own.dtype)
    if not cast.is_floating_point():
        return cast.to(given.dtype) != given
    return cast.isfinite().logical_not() & (cast != own.detach().to(cast.device))


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether they hold the same numbers, NaN counted as one."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _hold(names: list[str]) -> str:
    return "holds" if len(names) == 1 else "hold"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
