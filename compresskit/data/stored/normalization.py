"""What batches hold of stored inputs: normalised by channel, or whole numbers as they are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 64  # samples taken to float64 at a time, so that measuring needs little memory beside the set


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / std per channel in float32, for uint8 inputs (x / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def on(self, device: torch.device, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """The function for batches of the type and layout of `inputs` (N, C, ...) that lie on `device`."""
        unit = _unit(inputs)
        shape = (-1, *[1] * (inputs.dim() - 2))
        shift = torch.tensor([unit * m for m in self.mean], device=device).view(shape)
        scale = torch.tensor([unit * s for s in self.std], device=device).view(shape)
        return lambda batch: torch.sub(batch.float() if batch.dtype == torch.bool else batch, shift).div_(scale)

    def scales(self, inputs: Tensor) -> bool:
        """Whether batches hold other numbers than `inputs`."""
        return _unit(inputs) != 1 or self != identity(len(self.mean))


@dataclass(frozen=True)
class AsStored:
    """Tokens, which are looked up: int64 in each batch, whatever type they are stored in."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def on(self, device: torch.device, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """See Normalization."""
        return Tensor.long

    def scales(self, inputs: Tensor) -> bool:
        """See Normalization."""
        return False


Served = Normalization | AsStored


def identity(channels: int) -> Normalization:
    """Leaves inputs as they are (uint8 is still divided by 255)."""
    return Normalization((0.0,) * channels, (1.0,) * channels)


def measure(inputs: Tensor) -> Normalization:
    """Mean and standard deviation (divided by n) of each channel of inputs (N, C, ...), summed in float64.

    Two passes, since the difference of two large sums would lose the digits of a small spread. A constant channel gets
    standard deviation 1.
    """
    unit = _unit(inputs)
    chunks = torch.split(inputs.reshape(*inputs.shape[:2], -1), CHUNK)
    count = inputs.numel() / inputs.shape[1]
    mean = torch.stack([chunk.double().sum((0, 2)) for chunk in chunks]).sum(0) / count
    squares = torch.stack([(chunk.double() - mean[:, None]).square().sum((0, 2)) for chunk in chunks]).sum(0)
    std = (squares / count).sqrt()
    std = torch.where(std > 0, std / unit, 1.0)
    return Normalization(tuple((mean / unit).tolist()), tuple(std.tolist()))


def _unit(inputs: Tensor) -> float:
    return 255.0 if inputs.dtype == torch.uint8 else 1.0
