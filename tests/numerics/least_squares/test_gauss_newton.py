"""Conjugate gradients against a dense solver, and the laws of their steps; how damping moves."""

import math

import pytest
import torch

from compresskit.numerics.least_squares.gauss_newton import conjugate_gradients, damped


def system(n: int, rank: int | None = None, seed: int = 0):
    draws = torch.Generator().manual_seed(seed)
    factor = torch.randn(n, rank or 2 * n, generator=draws, dtype=torch.float64)
    return factor @ factor.T, torch.randn(n, generator=draws, dtype=torch.float64)


def test_as_many_steps_as_unknowns_solve_it():
    matrix, target = system(12)
    found = conjugate_gradients(lambda x: matrix @ x, target, 12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)


def test_each_step_is_the_best_of_its_dimension():
    """After k steps x minimises x' A x / 2 - b' x over b, A b, ..., A^(k-1) b: found by a dense solver there."""
    matrix, target = system(15, seed=1)
    basis = [target]
    for steps in range(1, 6):
        span, _ = torch.linalg.qr(torch.stack(basis, 1))
        best = span @ torch.linalg.solve(span.T @ matrix @ span, span.T @ target)
        found = conjugate_gradients(lambda x: matrix @ x, target, steps)
        torch.testing.assert_close(found, best, rtol=1e-7, atol=1e-10)
        assert float(found @ matrix @ found) == pytest.approx(float(target @ found))  # what the model promises
        basis.append(matrix @ basis[-1])


def test_more_steps_than_there_is_to_solve_change_nothing():
    matrix, _ = system(9, rank=4)
    target = matrix @ torch.ones(9, dtype=torch.float64)
    found = conjugate_gradients(lambda x: matrix @ x, target, 40)
    torch.testing.assert_close(matrix @ found, target, rtol=1e-7, atol=1e-8)
    nothing = torch.zeros(9, dtype=torch.float64)
    assert torch.equal(conjugate_gradients(lambda x: matrix @ x, nothing, 5), nothing)


def test_damping_falls_where_the_model_holds_and_rises_where_not():
    assert damped(1.0, 0.9) == 0.25
    assert damped(1.0, 0.5) == 1.0
    assert damped(1.0, 0.1) == damped(1.0, -3.0) == damped(1.0, math.nan) == damped(1.0, -math.inf) == 4.0
    assert damped(1e-8, 1.0) == 1e-8
    assert damped(1e8, 0.0) == 1e8
