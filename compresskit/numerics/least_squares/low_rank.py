"""Truncated factorisation of a layer, weighted by the moments of its input."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factorisation:
    """y ~ second (first x) + bias. first: (rank, in). second: (out, rank). error: E||W x - M x||^2 that it adds."""

    first: Tensor
    second: Tensor
    bias: Tensor
    error: float


def factorise(weight: Tensor, bias: Tensor, mean_x: Tensor, cxx: Tensor, allowed: float) -> Factorisation:
    """Factorisation of least rank that adds no more than `allowed` to E||y - M x - b||^2.

    weight: (out, in). mean_x: (in,). cxx: (in, in) covariance of the input, float64.
    Of all M of rank r, min E||W x - M x||^2 is reached by M = U U^T W with U the first r eigenvectors of W Cxx W^T, and
    the sum of its other eigenvalues is the error: principal components of the output. The bias carries the mean of what
    is lost. Source: linear neural reconstruction 2.1, its M = P Q^T with the data's own norm.
    """
    values, vectors = torch.linalg.eigh(weight @ cxx @ weight.T)
    lost = values.clamp(min=0).cumsum(0)  # of the 1, 2, ... smallest
    dropped = min(int((lost <= allowed).sum()), len(values) - 1)
    basis = vectors[:, dropped:]
    first = basis.T @ weight
    offset = bias + (weight - basis @ first) @ mean_x
    return Factorisation(first, basis, offset, float(lost[dropped - 1]) if dropped else 0.0)
