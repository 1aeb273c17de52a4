"""What each selection keeps where there is little to choose by: constants, copies, a single input, few samples."""

import math

import numpy as np
import pytest
import torch

from compresskit.errors import ConvergenceError
from compresskit.numerics.group_lasso.problem import Part, Problem
from compresskit.numerics.group_lasso.solvers import SOLVERS
from compresskit.passes.reconstruct.options import Backward, GroupLasso
from compresskit.passes.reconstruct.selection import Rule, choose, relative_error

RANDOM = np.random.default_rng(0)
X, TRUE = RANDOM.normal(size=(60, 6)), RANDOM.normal(size=(6, 3)) * [[1], [0], [2], [0], [3], [0]]
LASSOS = {kind: GroupLasso(solver=solver(tol=1e-4, max_iter=300), points=12) for kind, solver in SOLVERS.items()}
SELECTIONS = {"backward": Backward(), **LASSOS}
PLAIN = {  # inputs and outputs
    "constant inputs": (0 * X + 3, 0 * X @ TRUE),
    "inputs of zeros": (0 * X, 0 * X @ TRUE),
    "constant outputs": (X, 0 * X @ TRUE + 2),
    "a weight of zeros": (X, X @ (0 * TRUE)),
    "one sample": (X[:1], X[:1] @ TRUE),
    "one constant input": (0 * X[:, :1] + 1, 0 * X[:, :1] @ TRUE[:1]),
}
EXPLAINED = {
    "copies": (np.hstack([X[:, :3], X[:, :3]]), np.hstack([X[:, :3], X[:, :3]]) @ TRUE),
    "one input": (X[:, :1], X[:, :1] @ TRUE[:1]),
    "fewer samples than inputs": (X[:3], X[:3] @ TRUE),
    "some constant inputs": (np.where(np.arange(6) < 2, 5.0, X), np.where(np.arange(6) < 2, 5.0, X) @ TRUE),
    "small beside large means": (1e-3 * X + 1e4, (1e-3 * X + 1e4) @ TRUE),
}
RULES = {"count": Rule(count=2), "error": Rule(error=0.1), "lam": Rule(lam=0.05), "none": Rule()}
every_selection = pytest.mark.parametrize("kind", SELECTIONS)


def problem_of(inputs, outputs, size=1):
    """As a site makes it: in units of the variance of the outputs; moments by subtraction of means, as they are taken.

    size: inputs in a group.
    """
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in (inputs, outputs))
    mean_x, mean_y = x.mean(0), y.mean(0)
    cxx, cyx = x.T @ x / len(x) - mean_x[:, None] * mean_x, y.T @ x / len(x) - mean_y[:, None] * mean_x
    variance = float((y.square().mean(0) - mean_y.square()).clamp(min=0).sum())
    scale = 1 / variance if variance > 0 else 1.0
    groups = torch.arange(x.shape[1]) // size
    return Problem((Part(cxx * scale, cyx * scale, groups),), variance * scale, int(groups.max()) + 1)


def checked(problem, rule, selection):
    found = choose(problem, rule, selection, 1)
    assert found.kept.any()
    assert all(map(math.isfinite, (*found.curve.errors, *found.curve.lams, *found.curve.gaps)))
    assert len(found.curve.kept) > 0
    assert found.weights is None or all(weight.isfinite().all() for weight in found.weights)
    assert math.isfinite(relative_error(problem, found.kept))
    return found


def rules(kind):
    return [rule for name, rule in RULES.items() if not (kind == "backward" and name == "lam")]


@every_selection
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_where_nothing_varies_as_few_are_kept_as_may_be(name, size, kind):
    problem = problem_of(*PLAIN[name], size)
    for rule in rules(kind):
        kept = checked(problem, rule, SELECTIONS[kind]).kept
        if rule.error is not None:
            assert int(kept.sum()) == 1
        if rule.count is not None:
            assert int(kept.sum()) == min(rule.count, problem.n_groups)


@every_selection
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", EXPLAINED)
def test_what_explains_is_kept(name, size, kind):
    problem = problem_of(*EXPLAINED[name], size)
    for rule in rules(kind):
        checked(problem, rule, SELECTIONS[kind])
    assert relative_error(problem, checked(problem, Rule(error=0.1), SELECTIONS[kind]).kept) <= 0.1


@every_selection
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_unit_of_the_inputs_does_not_matter(scale, kind):
    for rule in (RULES["count"], RULES["error"]):
        plain = choose(problem_of(X, X @ TRUE), rule, SELECTIONS[kind], 1)
        scaled = choose(problem_of(scale * X, scale * X @ TRUE), rule, SELECTIONS[kind], 1)
        assert torch.equal(plain.kept, scaled.kept)


@every_selection
def test_noise_alone_ends_in_a_choice_or_in_a_word(kind):
    """The variances are below the rounding of the squares of the means, so what is left of R is indefinite."""
    problem = problem_of(1e-3 * X + 1e6, (1e-3 * X + 1e6) @ TRUE, 2)
    for rule in (RULES["count"], RULES["error"]):
        checked(problem, rule, SELECTIONS[kind])


def test_a_lambda_below_the_rounding_of_the_moments_is_refused():
    problem = problem_of(1e-3 * X + 1e6, (1e-3 * X + 1e6) @ TRUE)
    with pytest.raises(ConvergenceError, match=r"^lambda \S+ is less than the moments are exact to"):
        choose(problem, Rule(lam=1e-30), SELECTIONS["newton"], 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_moments_that_are_not_finite_make_no_problem(bad):
    for inputs, outputs in ((np.where(X > 1, bad, X), X @ TRUE), (X, np.where(X @ TRUE > 1, bad, X @ TRUE))):
        with pytest.raises(ConvergenceError, match="moments are not finite"):
            problem_of(inputs, outputs)
