"""Every solver of the group lasso against a conic solver on the samples themselves, and the laws of its minimum."""

from dataclasses import replace
from functools import cache

import cvxpy as cp
import numpy as np
import pytest
import torch

from compresskit.numerics.group_lasso.path import Descent, geometric, path
from compresskit.numerics.group_lasso.problem import Part, Problem, certify
from compresskit.numerics.group_lasso.solvers import SOLVERS
from tests.numerics.group_lasso.lasso_problems import LAYERS, PROBLEMS, objective

TOL = 1e-9  # relative duality gap asked for: the laws below follow from it, so none is tighter
SHARES = (0.6, 0.1, 0.01)  # of lam_max

every_solver = pytest.mark.parametrize("kind", SOLVERS)
every_problem = pytest.mark.parametrize("name", PROBLEMS)


@cache
def least(name, share):
    """min P by an interior point method, from samples; its own tolerance is 1e-8."""
    layers, n_groups = LAYERS[name]
    lam = share * PROBLEMS[name].lam_max
    weights = [cp.Variable((one.y.shape[1], one.x.shape[1])) for one in layers]
    fit = sum(cp.sum_squares(one.y - one.x @ w.T) / (2 * len(one.x)) for one, w in zip(layers, weights, strict=True))
    penalty = 0
    for group in range(n_groups):
        columns = [cp.vec(w[:, one.groups == group], order="F") for one, w in zip(layers, weights, strict=True)]
        own = [c for c in columns if c.size]
        penalty += cp.norm(cp.hstack(own), 2) if own else 0
    problem = cp.Problem(cp.Minimize(fit + lam * penalty))
    problem.solve(solver=cp.CLARABEL)
    return problem.value


def solved(kind, problem, lam, start=None):
    solution = SOLVERS[kind](tol=TOL)(problem)(lam, start)
    assert solution.converged
    assert solution.gap <= TOL
    return solution


def slack(problem, solution):
    """The amount by which G may miss its value at the minimum: ||G - G*|| <= sqrt(2 L (P - min P)), R <= L."""
    largest = max(float(torch.linalg.eigvalsh(part.cxx)[-1]) for part in problem.parts)
    return (2 * largest * TOL * solution.objective) ** 0.5


@every_problem
@every_solver
@pytest.mark.parametrize("share", SHARES)
def test_objective_is_the_minimum_within_the_gap(kind, name, share):
    lam = share * PROBLEMS[name].lam_max
    solution = solved(kind, PROBLEMS[name], lam)
    minimum = least(name, share)
    assert solution.objective == pytest.approx(objective(LAYERS[name][0], [w.numpy() for w in solution.weights], lam))
    assert solution.objective == pytest.approx(minimum, rel=1e-7)  # of the interior point method; TOL is less


@every_problem
@every_solver
@pytest.mark.parametrize("share", SHARES)
def test_optimality_conditions(kind, name, share):
    problem = PROBLEMS[name]
    lam = share * problem.lam_max
    solution = solved(kind, problem, lam)
    residuals = [part.cyx - w @ part.cxx for part, w in zip(problem.parts, solution.weights, strict=True)]
    sizes, steepest = problem.norms(solution.weights), problem.norms(residuals)
    inner = problem.by_group([(g * w).sum(0) for g, w in zip(residuals, solution.weights, strict=True)])
    missing = slack(problem, solution)
    assert (steepest <= lam + missing).all()
    assert (inner >= (lam - missing) * sizes - TOL * solution.objective).all()  # <G_g, M_g> = lam ||M_g||


@every_solver
@every_problem
def test_lam_max_is_where_the_first_group_enters(kind, name):
    problem = PROBLEMS[name]
    assert problem.norms(solved(kind, problem, problem.lam_max * 1.0001).weights).max() == 0
    below = problem.norms(solved(kind, problem, problem.lam_max * 0.99).weights)
    assert below.max() > 0
    assert below.count_nonzero() < problem.n_groups


@every_solver
def test_groups_that_the_minimum_drops_are_exactly_zero(kind):
    problem = PROBLEMS["single inputs"]
    counts = [
        int(problem.norms(s.weights).count_nonzero()) for s in path(problem, lams(problem), SOLVERS[kind](tol=TOL))
    ]
    reference = [int(problem.norms(solved("newton", problem, lam).weights).count_nonzero()) for lam in lams(problem)]
    assert counts == reference
    assert 0 < counts[0] < counts[-1]


def lams(problem):
    return geometric(0.9 * problem.lam_max, 0.02 * problem.lam_max, 6)


@every_solver
@pytest.mark.parametrize("factor", [1e-6, 3e4])
def test_a_scaled_problem_has_the_same_minimum_at_a_scaled_lam(kind, factor):
    problem = PROBLEMS["several layers"]
    scaled = Problem(
        tuple(Part(part.cxx * factor, part.cyx * factor, part.groups) for part in problem.parts),
        problem.variance * factor,
        problem.n_groups,
    )
    lam = 0.2 * problem.lam_max
    one, other = solved(kind, problem, lam), solved(kind, scaled, lam * factor)
    assert other.objective == pytest.approx(one.objective * factor, rel=2 * TOL)
    for a, b in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # sqrt of the gap over the least eigenvalue, about 0.1


@every_solver
def test_rotated_outputs_rotate_the_weights(kind):
    problem = PROBLEMS["groups of three"]
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    (part,) = problem.parts
    rotated = replace(problem, parts=(replace(part, cyx=rotation @ part.cyx),))
    lam = 0.2 * problem.lam_max
    one, other = solved(kind, problem, lam), solved(kind, rotated, lam)
    torch.testing.assert_close(other.weights[0], rotation @ one.weights[0], rtol=0, atol=1e-3)  # as above
    assert other.objective == pytest.approx(one.objective, rel=2 * TOL)


@every_solver
def test_permuted_groups_permute_the_weights(kind):
    problem = PROBLEMS["unequal groups, out of order"]
    (part,) = problem.parts
    order = torch.tensor([3, 8, 1, 0, 9, 2, 7, 5, 6, 4])
    names = torch.tensor([2, 4, 0, 1, 3])
    moved = Part(part.cxx[order][:, order], part.cyx[:, order], names[part.groups[order]])
    lam = 0.2 * problem.lam_max
    one, other = solved(kind, problem, lam), solved(kind, replace(problem, parts=(moved,)), lam)
    torch.testing.assert_close(other.weights[0], one.weights[0][:, order], rtol=0, atol=1e-3)  # as above
    assert other.objective == pytest.approx(one.objective, rel=2 * TOL)


@every_solver
@every_problem
def test_a_warm_start_reaches_the_same_minimum(kind, name):
    problem = PROBLEMS[name]
    generator = torch.Generator().manual_seed(1)
    far = [torch.randn(part.cyx.shape, dtype=torch.float64, generator=generator) for part in problem.parts]
    lam = 0.1 * problem.lam_max
    cold = solved(kind, problem, lam)
    assert solved(kind, problem, lam, far).objective == pytest.approx(cold.objective, rel=2 * TOL)
    assert solved(kind, problem, lam, cold.weights).n_iter <= 2  # the start itself, or a step from it


@every_solver
def test_a_start_is_not_written_to(kind):
    problem = PROBLEMS["several layers"]
    start = solved(kind, problem, 0.5 * problem.lam_max).weights
    copies = [weight.clone() for weight in start]
    solved(kind, problem, 0.1 * problem.lam_max, start)
    assert all(torch.equal(a, b) for a, b in zip(start, copies, strict=True))


@every_solver
def test_too_few_iterations_are_said_with_the_gap(kind):
    problem = PROBLEMS["badly conditioned"]
    lam = 0.01 * problem.lam_max
    solution = SOLVERS[kind](tol=1e-12, max_iter=2)(problem)(lam, None)
    assert not solution.converged
    found = certify(problem, solution.weights, lam)
    assert solution.gap == pytest.approx(found.gap)
    assert solution.gap > 1e-12
    assert solution.n_iter <= 2


@every_solver
@every_problem
def test_the_path_is_that_of_single_problems(kind, name):
    """The path solves a reduced problem and restores its weights."""
    problem = PROBLEMS[name]
    found = path(problem, lams(problem), SOLVERS[kind](tol=TOL))
    for lam, solution in zip(lams(problem), found, strict=True):
        assert solution.lam == lam
        assert [w.shape for w in solution.weights] == [part.cyx.shape for part in problem.parts]
        assert certify(problem, solution.weights, lam).gap <= 2 * TOL  # rounding of the rotation
        assert solution.objective == pytest.approx(solved(kind, problem, lam).objective, rel=2 * TOL)


@every_solver
def test_a_descent_starts_from_its_last_solution(kind):
    descent = Descent(PROBLEMS["several layers"], SOLVERS[kind](tol=TOL))
    first, again = descent.at(0.05), descent.at(0.05)
    assert again.n_iter <= 2 < first.n_iter


@every_solver
def test_nothing_to_explain_gives_zero(kind):
    (part,) = PROBLEMS["single inputs"].parts
    problem = Problem((replace(part, cyx=torch.zeros_like(part.cyx)),), 1.0, 8)
    solution = solved(kind, problem, 0.1)
    assert float(problem.norms(solution.weights).max()) == 0
    assert solution.objective == 0.5


@pytest.mark.parametrize("lam", [0.0, -1.0])
def test_lam_must_be_above_zero(lam):
    descent = Descent(PROBLEMS["single inputs"], SOLVERS["newton"]())
    with pytest.raises(ValueError, match="lam must be above 0, got"):
        descent.at(lam)


def test_geometric_lams():
    np.testing.assert_allclose(geometric(8.0, 1.0, 4), [8, 4, 2, 1], rtol=1e-14)
    assert geometric(8.0, 1.0, 1) == [8.0]
