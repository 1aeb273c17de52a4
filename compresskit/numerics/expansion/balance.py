"""Balanced factors: of all that have the same product, those of least norm, from which gradients reach all alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

SWEEPS = 50
CONDITION = 1e8  # of the squared factors, beyond which a change of basis would lose digits


def balanced(kernels: Sequence[Tensor], tol: float = 1e-8) -> list[Tensor]:
    """Kernels (groups, out, *taps, in), first layer first, with the same product and balanced where shapes allow.

    Between two neighbours, first A (mid, taps in) and second B (out taps, mid), any invertible M gives M A and B M^-1
    with the product that they had. With P = A A^T and Q = B^T B the one of least norm has M^T M = X, the geometric mean
    of P^-1 and Q: X = P^-1/2 (P^1/2 Q P^1/2)^1/2 P^-1/2, after which A A^T = B^T B. Where mid is wider than one of
    them, P or Q is singular and the mean would leave directions without any gradient: there numbers make the norms
    equal, group by group. Sweeps over the pairs end when every ||P - Q|| is at most `tol` ||P + Q||; a chain without a
    pair to balance takes none. The product is kept to rounding in the kernels' own precision.
    Source: the balance of gradient flow, Arora, Cohen and Hazan 2018; the mean, Bhatia, Positive Definite Matrices.
    """
    found = _of_equal_norms(kernels)
    for _ in range(SWEEPS):
        if max([_balance(found, place, tol) for place in range(len(found) - 1)], default=0.0) <= tol:
            break
        found = _of_equal_norms(found)
    return found


def _of_equal_norms(kernels: Sequence[Tensor]) -> list[Tensor]:
    """Scaled to the geometric mean of their norms in each group; a group of which one is all zeros stays as it is."""
    norms = torch.stack([torch.linalg.vector_norm(kernel.flatten(1), dim=1) for kernel in kernels]).double()
    usable = (norms > 0).all(0)
    numbers = torch.where(usable, norms.clamp(min=torch.finfo(torch.float64).tiny).log().mean(0).exp() / norms, 1.0)
    shape = (-1, *[1] * (kernels[0].ndim - 1))
    return [kernel * number.to(kernel.dtype).view(shape) for kernel, number in zip(kernels, numbers, strict=True)]


def _balance(kernels: list[Tensor], place: int, tol: float) -> float:
    """Balances the kernels at `place` and behind it, in the list; returns how far they were from it."""
    rows, columns = kernels[place].flatten(2), kernels[place + 1].flatten(1, -2)
    if rows.shape[-2] > min(rows.shape[-1], columns.shape[-2]):
        return 0.0
    p, q = rows @ rows.mT, columns.mT @ columns
    difference = float((p - q).norm() / (p + q).norm())
    values, vectors = torch.linalg.eigh(p)
    if difference <= tol or not _is_sound(values, CONDITION):
        return 0.0
    root, inverse_root = _power(values, vectors, 0.5), _power(values, vectors, -0.5)
    values, vectors = torch.linalg.eigh(root @ q @ root)
    if not _is_sound(values, CONDITION**2):
        return 0.0
    change = _power(values, vectors, 0.25) @ inverse_root
    inverse = root @ _power(values, vectors, -0.25)
    kernels[place] = (change @ rows).view(kernels[place].shape)
    kernels[place + 1] = (columns @ inverse).view(kernels[place + 1].shape)
    return difference


def _is_sound(values: Tensor, condition: float) -> bool:
    """Whether the eigenvalues (groups, n), in order, are positive and near enough to each other."""
    return bool(((values[:, 0] > 0) & (values[:, 0] * condition > values[:, -1])).all())


def _power(values: Tensor, vectors: Tensor, exponent: float) -> Tensor:
    """Of symmetric positive definite matrices (groups, n, n), of which these are the eigenvalues and eigenvectors."""
    return (vectors * values[:, None, :] ** exponent) @ vectors.mT
