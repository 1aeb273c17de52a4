"""Blocks of ones that a mask is made of, up to the order of its rows and columns."""

import torch
from torch import Tensor

from compresskit.numerics.sparse.ramanujan import Blocks


def find_blocks(mask: Tensor) -> Blocks:
    """The blocks of a mask (outputs, inputs) bool, each of c outputs that read the same d inputs and share none.

    They are numbered so that the inputs, or where they cannot, the outputs are in order.
    Raises ValueError for any other mask, which says in what it differs.
    """
    supports, number = mask.unique(dim=0, return_inverse=True)  # (groups, inputs); of each output, its group
    readers = supports.sum(0)
    if bool((readers > 1).any()):
        raise ValueError("outputs share some of their inputs, but not all")
    if bool((readers == 0).any()) or not bool(supports.any(1).all()):
        raise ValueError("an input or an output has no weight left")
    outputs, inputs = number.bincount(minlength=len(supports)), supports.sum(1)
    if len(outputs.unique()) > 1 or len(inputs.unique()) > 1:
        raise ValueError("its blocks are of several sizes")
    columns = supports.int().argmax(0).argsort(stable=True).view(len(supports), -1)
    rows = number.argsort(stable=True).view(len(supports), -1)
    order = columns[:, 0].argsort()
    if not columns[order].flatten().equal(torch.arange(mask.shape[1], device=mask.device)):
        order = rows[:, 0].argsort()
    return Blocks(rows[order], columns[order])
