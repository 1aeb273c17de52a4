"""Balanced factors: of all that have the same product, those of least norm, from which gradients reach all alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

SWEEPS = 50
CONDITION = 1e8  # of the squared factors, beyond which a change of basis would lose digits


def balanced(kernels: Sequence[Tensor], tol: float = 1e-10) -> list[Tensor]:
    """Kernels (groups, out, *taps, in), first layer first, with the same product and balanced where shapes allow.

    Between two neighbours, first A (mid, taps in) and second B (out taps, mid), any invertible M gives M A and B M^-1
    with the product that they had. With P = A A^T and Q = B^T B the one of least norm has M^T M = X, the geometric mean
    of P^-1 and Q: X = P^-1/2 (P^1/2 Q P^1/2)^1/2 P^-1/2, after which A A^T = B^T B. Where mid is wider than one of
    them, P or Q is singular and the mean would leave directions without any gradient: there M is a number that makes
    the norms equal, group by group. Pairs are taken in turn until no M differs from 1 by more than `tol`.
    Source: the balance of gradient flow, Arora, Cohen and Hazan 2018; the mean, Bhatia, Positive Definite Matrices.
    """
    found = [kernel.double() for kernel in kernels]
    for _ in range(SWEEPS):
        largest = 0.0
        for place in range(len(found) - 1):
            change, inverse = _change(found[place], found[place + 1])
            found[place] = _from_left(change, found[place])
            found[place + 1] = (found[place + 1].flatten(1, -2) @ inverse).view(found[place + 1].shape)
            unit = torch.eye(change.shape[-1], dtype=change.dtype, device=change.device)
            largest = max(largest, float((change - unit).abs().max()))
        if largest <= tol:
            break
    return found


def _change(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """M and its inverse, (groups, mid, mid)."""
    rows = first.flatten(2)
    columns = second.flatten(1, -2)
    p, q = rows @ rows.mT, columns.mT @ columns
    width = p.shape[-1]
    if width <= min(rows.shape[-1], columns.shape[-2]) and _is_sound(p) and _is_sound(q):
        root, inverse_root = _power(p, 0.5), _power(p, -0.5)
        mean = inverse_root @ _power(root @ q @ root, 0.5) @ inverse_root
        return _power(mean, 0.5), _power(mean, -0.5)
    traces = [matrix.diagonal(dim1=-2, dim2=-1).sum(-1) for matrix in (p, q)]
    usable = (traces[0] > 0) & (traces[1] > 0)  # a factor of zeros stays as it is
    number = torch.where(usable, (traces[1] / traces[0]).nan_to_num(1.0, 1.0, 1.0) ** 0.25, 1.0)[:, None, None]
    unit = torch.eye(width, dtype=p.dtype, device=p.device)
    return number * unit, unit / number


def _is_sound(matrix: Tensor) -> bool:
    values = torch.linalg.eigvalsh(matrix)
    return bool((values[..., 0] * CONDITION > values[..., -1]).all())


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of symmetric positive definite matrices (..., n, n)."""
    values, vectors = torch.linalg.eigh(matrix)
    powers: Tensor = values.clamp(min=torch.finfo(values.dtype).tiny)[..., None, :] ** exponent
    found: Tensor = (vectors * powers) @ vectors.mT
    return found


def _from_left(matrix: Tensor, kernel: Tensor) -> Tensor:
    return (matrix @ kernel.flatten(2)).view(kernel.shape)
