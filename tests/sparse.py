"""Masks of sparse layers for tests, in a line of their own."""

import torch
from torch import Tensor


def block_mask(outputs: int, inputs: int, degree: int) -> Tensor:
    """(outputs, inputs) bool: row i belongs to block i mod g, column j to block j // degree, g = inputs / degree."""
    groups = inputs // degree
    return (torch.arange(outputs) % groups)[:, None] == (torch.arange(inputs) // degree)[None]


def scattered(mask: Tensor, seed: int) -> Tensor:
    """The mask with rows and columns in random order."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(side, generator=generator) for side in mask.shape)
    return mask[rows][:, columns]
