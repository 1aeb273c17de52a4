"""What samples of the user's own data set are made of, and how they become the tensors of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree

from compresskit.data.own.targets import OWN, Targets
from compresskit.data.stored.oddities import shortened
from compresskit.errors import DataError

Place = str | int | None  # of a value in a sample: its key, or its number in a tuple
IGNORED = 255  # class of pixels that are not counted
WHOLE = f"set data.task: {OWN} where targets are to reach your loss and metrics as they are"


@dataclass(frozen=True)
class Form:
    """How a sample is read. inputs: where the network's input is, or each of several; None: first of a pair.

    names: of the classes, where targets are texts. collate: of the user's, from samples to a batch.
    """

    inputs: Place | tuple[str | int, ...] = None
    targets: Place = None
    task: str = "classification"
    outputs: int = 0
    names: tuple[str, ...] = ()
    collate: Callable[[list[Any]], Any] | None = None

    def pair(self, sample: Any) -> tuple[Any, Any]:
        """Input and target of a sample, or of a batch that `collate` made. Raises DataError where they lack."""
        if self.inputs is None or self.targets is None:
            if isinstance(sample, Mapping) or not isinstance(sample, tuple | list) or len(sample) != 2:
                raise DataError(
                    f"a sample is {_told(sample)}; return pairs (input, target), or say where they are by data.inputs "
                    "and data.targets"
                )
        inputs = 0 if self.inputs is None else self.inputs
        target = _at(sample, 1 if self.targets is None else self.targets, "targets")
        if isinstance(inputs, tuple):
            return tuple(_at(sample, place, "inputs") for place in inputs), target
        return _at(sample, inputs, "inputs"), target

    def batch(self, samples: list[Any]) -> tuple[Any, Any]:
        """Inputs (N, ...), or a tuple of them, and targets. Raises DataError for what cannot be stacked or meant."""
        if self.task == OWN:
            return self._whole(samples)
        if self.collate is not None:
            inputs, targets = self.pair(self.collate(samples))
            made, stacked = numbers(inputs), self._targets(targets)
        else:
            pairs = [self.pair(sample) for sample in samples]
            made = _stacked([numbers(one) for one, _ in pairs])
            stacked = _stack([self._targets(target) for _, target in pairs], "targets")
        if self.task == "regression":
            stacked = stacked.reshape(len(stacked), -1)
        self._check(made, stacked, len(samples))
        return made, stacked

    def _whole(self, samples: list[Any]) -> tuple[Any, Targets]:
        """With the targets as collate returns them; without one, a list of those of the samples."""
        if self.collate is None:
            pairs = [self.pair(sample) for sample in samples]
            inputs, value = _stacked([numbers(one) for one, _ in pairs]), [target for _, target in pairs]
        else:
            inputs, value = self.pair(self.collate(samples))
            inputs = numbers(inputs)
        targets = Targets(pytree.tree_map_only(Tensor, Tensor.detach, value), len(samples)).cpu()
        _check_inputs(inputs, len(samples))
        return inputs, targets

    def _targets(self, value: Any) -> Tensor:
        """In the type that losses take: int64 of classes, float32 of values."""
        if self.names and not isinstance(value, Tensor | np.ndarray | int | np.integer):
            several = not isinstance(value, str | bytes)
            found = [self._number(name) for name in (value if several else [value])]
            return torch.tensor(found if several else found[0])
        made = _number_tensor(value)
        return made.float() if self.task == "regression" else made.long()

    def _number(self, name: Any) -> int:
        text = name.decode() if isinstance(name, bytes) else str(name)
        if text not in self.names:
            raise DataError(f"a target is {text!r}, the classes are {shortened(self.names)}; add it to data.classes")
        return self.names.index(text)

    def _check(self, inputs: Any, targets: Tensor, count: int) -> None:
        _check_inputs(inputs, count)
        if len(targets) != count:
            raise DataError(f"{count} samples became {len(targets)} targets in data.collate; {WHOLE}")
        if self.task == "regression":
            if targets.shape[1] != self.outputs or not torch.isfinite(targets).all():
                raise DataError(f"targets of shape {tuple(targets.shape)} are not {self.outputs} finite values each")
            return
        dimensions = 3 if self.task == "segmentation" else 1
        wrong = (targets < 0) | (targets >= self.outputs)
        if self.task == "segmentation":
            wrong &= targets != IGNORED
        if targets.ndim != dimensions or wrong.any():
            given = f"{int(targets[wrong][0])} is none" if wrong.any() else f"the targets are {tuple(targets.shape)}"
            told = f"classes are whole numbers from 0 to {self.outputs - 1}, and {given}; check data.classes"
            raise DataError(f"{told}, or {WHOLE}" if targets.ndim != dimensions else told)


def _check_inputs(inputs: Any, count: int) -> None:
    for one in inputs if isinstance(inputs, tuple) else (inputs,):
        if one.ndim == 0 or len(one) != count:
            raise DataError(f"{count} samples became inputs of shape {tuple(one.shape)} in data.collate")
        if one.is_floating_point() and not torch.isfinite(one).all():
            raise DataError("an input is NaN or infinite in float32; mend or leave out that sample")


def numbers(value: Any) -> Any:
    """An input as tensors: uint8 stays, floats become float32, other whole numbers int64; a tuple of several inputs.

    Images of PIL become uint8 (C, H, W): C is 1 for grey ones, 3 for all others.
    """
    if isinstance(value, tuple):
        return tuple(numbers(one) for one in value)
    if isinstance(value, Image.Image):
        return _pixels(value)
    made = _number_tensor(value)
    if isinstance(value, np.ndarray) and made.ndim == 3 and made.dtype == torch.uint8:
        if made.shape[2] in (1, 3, 4) and min(made.shape[:2]) > 4:
            raise DataError(
                f"an input is of shape {tuple(made.shape)}, with channels last; they come first: return "
                "image.transpose(2, 0, 1)"
            )
    if made.is_floating_point() or made.dtype == torch.bool:
        return made.float()
    return made if made.dtype == torch.uint8 else made.long()


def _pixels(image: Image.Image) -> Tensor:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise DataError(
            f"an image has pixels of mode {image.mode}, of which nobody says what is white; return its numbers"
        )
    plain = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    pixels = torch.from_numpy(np.array(plain))
    return pixels[None] if plain.mode == "L" else pixels.permute(2, 0, 1).contiguous()


def _number_tensor(value: Any) -> Tensor:
    try:
        made = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{_told(value)}, where numbers are needed; return tensors or arrays of numbers") from error
    if made.is_complex():
        raise DataError("complex numbers were given; return two channels")
    return made.detach().cpu()


def _stacked(made: Sequence[Any]) -> Any:
    if isinstance(made[0], tuple):
        return tuple(_stack(one, "inputs") for one in zip(*made, strict=True))
    return _stack(made, "inputs")


def _stack(tensors: Sequence[Tensor], what: str) -> Tensor:
    kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        told = " and ".join(sorted(f"{shape} ({str(dtype).removeprefix('torch.')})" for shape, dtype in kinds)[:2])
        raise DataError(f"{what} differ, {told}; make them alike, or name a function that does as data.collate")
    return torch.stack(list(tensors))


def _at(sample: Any, place: str | int, key: str) -> Any:
    try:
        return sample[place]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"a sample is {_told(sample)}, and there is no {place!r} in it; change data.{key}") from error


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {shortened(list(value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
