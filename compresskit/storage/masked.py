"""Masked tensors as files hold them: the values that are left, and a bit for each place."""

import numpy as np
import torch
from torch import Tensor

from compresskit.errors import CheckpointError


def left(tensor: Tensor, mask: Tensor) -> Tensor:
    """(kept,) the values that the mask keeps. Raises ValueError if others are not zero."""
    if bool(tensor[~mask].any()):
        raise ValueError("a masked weight is not zero; apply the masks before saving")
    return tensor[mask]


def whole(values: Tensor, mask: Tensor, name: str) -> Tensor:
    """The tensor that `left` took them from, zeros elsewhere. Raises CheckpointError if there are too many or few."""
    if values.shape != (int(mask.sum()),):
        raise CheckpointError(
            f"{name} has {tuple(values.shape)} values for a mask that keeps {int(mask.sum())}; take another copy of "
            "the file"
        )
    tensor = values.new_zeros(mask.shape)
    tensor[mask] = values
    return tensor


def packed(mask: Tensor) -> Tensor:
    """uint8, eight places in each."""
    return torch.from_numpy(np.packbits(mask.numpy()))


def unpacked(bits: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The mask of that shape, on the device of the bits. Raises CheckpointError if it has another size."""
    if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
        raise CheckpointError(
            f"the mask of {name} does not fit its shape {tuple(shape)}; take another copy of the file"
        )
    found = np.unpackbits(bits.cpu().numpy(), count=shape.numel()).astype(bool)
    return torch.from_numpy(found).view(shape).to(bits.device)
