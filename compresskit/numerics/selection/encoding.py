"""What weights cost in bits under encodings that a report compares."""

from math import lgamma, log, log2

import torch
from torch import Tensor

FLOAT = 32  # bits of a stored number


def raw_bits(parameters: int) -> int:
    """32 bits a parameter: the document's measure, and the size in memory once decoded."""
    return FLOAT * parameters


def selection_bits(inputs: int, kept: int) -> float:
    """log2 of the binomial (inputs over kept): what it takes to say which inputs a layer reads (document 2.2)."""
    return (lgamma(inputs + 1) - lgamma(kept + 1) - lgamma(inputs - kept + 1)) / log(2)


def csr_bits(weight: Tensor) -> float:
    """Compressed sparse rows of a weight (out, ...), in bits: a (log2 columns + 32) + rows log2 columns.

    For each of the a entries that are not 0 its value and its column, for each row a count (document 5.2, for matrices
    that need not be square). A tensor of one dimension is stored raw.
    """
    if weight.ndim < 2:
        return float(FLOAT * weight.numel())
    rows, columns = len(weight), weight[0].numel()
    index = log2(max(columns, 2))
    return int(torch.count_nonzero(weight)) * (index + FLOAT) + rows * index
