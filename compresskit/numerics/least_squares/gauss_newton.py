"""Non-linear least squares by products with the Jacobian alone: conjugate gradients inside, damping outside."""

from collections.abc import Callable

import torch
from torch import Tensor

START = 1e-2  # damping at first, as a share of the curvature along the gradient
_LEAST, _MOST = 1e-8, 1e8


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """So many steps towards the x with A x = target, from x = 0 (Hestenes and Stiefel 1952).

    product: x (n,) -> A x, A symmetric and positive semidefinite. Each step minimises x' A x / 2 - target' x over one
    more dimension, so that it never rises; where nothing is left to solve, x stays as it is. Nothing is read back from
    the device on the way.
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, rest = residual.clone(), residual @ residual
    tiny = torch.finfo(target.dtype).tiny
    for _ in range(iterations):
        image = product(direction)
        curvature = direction @ image
        length = torch.where(curvature > tiny, rest / curvature.clamp(min=tiny), 0.0)
        x = x + length * direction
        residual = residual - length * image
        before, rest = rest, residual @ residual
        direction = residual + torch.where(before > tiny, rest / before.clamp(min=tiny), 0.0) * direction
    return x


def damped(damping: float, ratio: float) -> float:
    """The next damping. ratio: by how much the error fell, as a share of what the quadratic model promised.

    Smaller where the model holds, larger where it does not (Marquardt 1963; the thresholds of Martens 2010, section 4).
    """
    factor = 1 / 4 if ratio > 0.75 else 4.0 if not ratio > 0.25 else 1.0  # NaN: a step out of all bounds
    return min(max(damping * factor, _LEAST), _MOST)
