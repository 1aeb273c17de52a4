"""Factors in closed form against the iteration that finds them one at a time, and the laws that say which they are."""

import pytest
import torch

from compresskit.numerics.expansion.balance import balanced
from compresskit.numerics.expansion.composition import contract
from compresskit.numerics.expansion.fit import fit_factors
from compresskit.numerics.expansion.solve import carrier, orthonormal, solve_factors


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(shapes, seed=0):
    return [draw(seed + number, *shape) for number, shape in enumerate(shapes)]


def product(factors):
    return contract(factors, [None] * len(factors))[0]


def error(factors, goal):
    return float((product(factors) - goal).norm() / goal.norm())


WIDE = {
    "cl": [(1, 8, 1, 1, 3), (1, 12, 3, 3, 8), (1, 4, 1, 1, 12)],
    "cl, 1-D": [(1, 5, 1, 5), (1, 9, 3, 5), (1, 6, 1, 9)],
    "cl, depthwise": [(4, 3, 1, 1, 1), (4, 3, 3, 3, 3), (4, 1, 1, 1, 3)],
    "cl, one tap": [(1, 6, 1, 1, 3), (1, 8, 1, 1, 6), (1, 4, 1, 1, 8)],
    "fc": [(1, 8, 4), (1, 5, 8)],
    "fc, more inputs": [(1, 8, 9), (1, 5, 8)],
    "fc, three factors": [(1, 8, 4), (1, 9, 8), (1, 5, 9)],
    "one factor": [(2, 3, 3, 1, 4)],
}
NARROW = {
    "cl": [(1, 4, 1, 1, 9), (1, 3, 3, 3, 4), (1, 7, 1, 1, 3)],
    "cl, narrow behind": [(1, 8, 1, 1, 3), (1, 3, 3, 3, 8), (1, 7, 1, 1, 3)],
    "cl, groups": [(2, 2, 1, 4), (2, 3, 3, 2), (2, 5, 1, 3)],
    "fc": [(1, 3, 8), (1, 6, 3)],
    "fc, three factors": [(1, 4, 9), (1, 4, 4), (1, 7, 4)],
}


@pytest.mark.parametrize("shapes", WIDE.values(), ids=WIDE)
def test_wide_factors_are_those_of_the_iteration_and_as_exact(shapes):
    start, goal = chain(shapes), product(chain(shapes, seed=9))
    solved = solve_factors(goal, start)
    fitted = fit_factors(goal, [start[n] if n == carrier(shapes) else solved[n] for n in range(len(shapes))])
    assert error(solved, goal) <= max(2e-15, error(fitted.kernels, goal))
    for ours, theirs in zip(solved, fitted.kernels, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)  # the iteration inverts damped Gram matrices


@pytest.mark.parametrize("shapes", NARROW.values(), ids=NARROW)
def test_narrow_factors_are_exact_where_the_kernel_has_their_rank(shapes):
    start, goal = chain(shapes), product(chain(shapes, seed=9))
    solved = solve_factors(goal, start)
    assert error(solved, goal) <= 1e-14
    assert error(solved, goal) <= fit_factors(goal, start).residual


def test_more_width_than_rank_on_the_narrow_side_is_filled_up_from_the_start():
    start, goal = chain([(1, 5, 9), (1, 9, 5), (1, 4, 9)]), draw(9, 1, 4, 9)  # rank 4, width 5
    solved = solve_factors(goal, start)
    assert error(solved, goal) <= 1e-14
    unit = solved[0][0] @ solved[0][0].T
    torch.testing.assert_close(unit, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-14)


def test_matrices_of_too_little_width_are_the_nearest_ones():
    goal = draw(2, 1, 7, 9)
    solved = solve_factors(goal, chain([(1, 3, 9), (1, 7, 3)]))
    values = torch.linalg.svdvals(goal[0])
    assert error(solved, goal) == pytest.approx(float(values[3:].norm() / values.norm()))  # Eckart and Young


def test_balanced_matrices_share_the_singular_values():
    goal = draw(2, 1, 3, 9)
    values = torch.linalg.svdvals(goal[0])
    for shapes in ([(1, 3, 9), (1, 3, 3)], [(1, 3, 9), (1, 3, 3), (1, 3, 3)]):
        for factor in balanced(solve_factors(goal, chain(shapes))):
            torch.testing.assert_close(torch.linalg.svdvals(factor[0]), values ** (1 / len(shapes)))


@pytest.mark.parametrize("shapes", WIDE.values(), ids=WIDE)
def test_every_weight_of_wide_factors_has_a_gradient(shapes):
    goal = product(chain(shapes, seed=9))
    factors = [factor.requires_grad_() for factor in balanced(solve_factors(goal, chain(shapes)))]
    (product(factors) * draw(20, *goal.shape)).sum().backward()
    for factor in factors:
        assert factor.grad is not None
        assert (factor.grad.abs() > 1e-6 * factor.grad.abs().max()).all()


def test_a_start_that_is_nearly_singular_or_zero_becomes_orthonormal():
    assert orthonormal(torch.tensor([[[-1e-9]]])).item() == -1.0
    for matrix in (draw(0, 2, 5, 3), draw(0, 2, 3, 5), torch.zeros(1, 3, 3, dtype=torch.float64)):
        found = orthonormal(matrix)
        gram = found @ found.mT if found.shape[1] < found.shape[2] else found.mT @ found
        torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64).expand_as(gram))


def test_a_kernel_of_zeros_has_factors():
    start = chain(NARROW["cl"])
    assert product(solve_factors(torch.zeros(1, 7, 3, 3, 9, dtype=torch.float64), start)).abs().max() < 1e-14


def test_several_factors_of_several_taps_are_refused():
    shapes = [(1, 8, 3, 3, 2), (1, 4, 3, 3, 8)]
    assert carrier(shapes) is None
    assert carrier([(1, 3, 3)] * 4) is None
    with pytest.raises(ValueError, match="at most one factor of several taps"):
        solve_factors(draw(0, 1, 4, 5, 5, 2), chain(shapes))
