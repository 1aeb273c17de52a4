"""Factors whose product is a given kernel, by iteration: where several of them have several taps."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from compresskit.numerics.expansion.composition import compose, contract

SWEEPS = 300  # alternating least squares; where one factor can carry all, the first one is exact
PATIENCE = 20  # sweeps before they are judged by what one of them gains
DAMPING = 1e-13  # of the mean of a Gram matrix's diagonal, so that a singular one can be factorised


@dataclass(frozen=True)
class Factors:
    """kernels: first layer first. residual: ||product - kernel||_F / ||kernel||_F."""

    kernels: list[Tensor]
    residual: float


def fit_factors(kernel: Tensor, start: Sequence[Tensor], tol: float = 1e-8) -> Factors:
    """Kernels near `start` whose product is `kernel` (groups, out, *taps, in), in float64.

    One factor at a time is moved by the smallest change (Frobenius norm) that brings the product nearest to `kernel`,
    until the residual is at most `tol`, or it cannot be: a factor X between the product G of those before it and H of
    those behind it, X + H^+ (kernel - H X G) G^+, with ^+ the pseudo-inverse. It is solved for where G or H has one
    tap, since with taps on both sides its equations do not separate. Not in the document, which trains from random.
    """
    kernels = [factor.double() for factor in start]
    goal = kernel.double()
    scale = float(goal.norm())
    residual = _distance(goal, kernels, scale)
    for sweep in range(SWEEPS):
        before = residual
        for number in _solvable(kernels):
            if residual > tol:
                kernels[number] = kernels[number] + _change(goal, kernels, number)
                residual = _distance(goal, kernels, scale)
        gain = residual / before if before else 1.0
        out_of_reach = sweep >= PATIENCE and residual * gain ** (SWEEPS - sweep) > tol
        if residual <= tol or gain > 0.999 or out_of_reach:
            break
    return Factors(kernels, residual)


def _distance(goal: Tensor, kernels: Sequence[Tensor], scale: float) -> float:
    distance = float((_product(kernels) - goal).norm())
    return distance / scale if scale else distance


def _product(kernels: Sequence[Tensor]) -> Tensor:
    return contract(kernels, [None] * len(kernels))[0]


def _taps(kernel: Tensor) -> int:
    return prod(kernel.shape[2:-1])


def _solvable(kernels: Sequence[Tensor]) -> list[int]:
    """Numbers of the factors with one tap on one side at least, those with the most unknowns first."""
    taps = [_taps(kernel) for kernel in kernels]
    found = [n for n in range(len(kernels)) if prod(taps[:n]) == 1 or prod(taps[n + 1 :]) == 1]
    return sorted(found, key=lambda n: -kernels[n].numel())


def _change(goal: Tensor, kernels: Sequence[Tensor], number: int) -> Tensor:
    """The smallest change of one factor that brings the product nearest to the goal."""
    factor, earlier, later = kernels[number], kernels[:number], kernels[number + 1 :]
    missing = goal - _product(kernels)
    groups, out, *taps, inputs = factor.shape
    if not later or _taps(after := _product(later)) == 1:
        if later:
            found = _solved(after.reshape(groups, -1, out), missing.flatten(2))
            missing = found.reshape(groups, out, *missing.shape[2:])
        if not earlier:
            return missing.reshape(factor.shape)
        units = torch.eye(prod(taps) * inputs, dtype=goal.dtype, device=goal.device)
        units = units.reshape(1, -1, *taps, inputs).expand(groups, *[-1] * (factor.ndim - 1))
        design = compose(units, _product(earlier)).flatten(2)  # (groups, taps inputs, goal's taps and inputs)
        return _solved(design.mT, missing.flatten(2).mT).mT.reshape(factor.shape)
    units = torch.eye(out * prod(taps), dtype=goal.dtype, device=goal.device)
    units = units.reshape(1, out, *taps, -1).expand(groups, *[-1] * (factor.ndim - 1))
    design = compose(after, units).flatten(1, -2)  # (groups, goal's outputs and taps, out taps)
    solved = _solved(design, missing.flatten(1, -2))
    if earlier:
        solved = _solved(_product(earlier).reshape(groups, inputs, -1).mT, solved.mT).mT
    return solved.reshape(factor.shape)


def _solved(design: Tensor, goal: Tensor) -> Tensor:
    """The smallest X that brings design X nearest to goal: design^+ goal, by the Gram matrix of the shorter side.

    It squares the condition, and what it leaves the next sweep finds.
    """
    rows, columns = design.shape[-2:]
    gram = design @ design.mT if rows < columns else design.mT @ design
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += DAMPING * diagonal.mean(-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    factor = torch.linalg.cholesky(gram)
    if rows < columns:
        return design.mT @ torch.cholesky_solve(goal, factor)
    return torch.cholesky_solve(design.mT @ goal, factor)
