"""The certificate, the reduction, the proximal map and the variational form, which all solvers stand on."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compresskit.numerics.group_lasso.newton import Newton
from compresskit.numerics.group_lasso.problem import certify, reduce
from compresskit.numerics.group_lasso.proximal import proximal_step, shrink
from compresskit.numerics.group_lasso.variational import Inner
from tests.numerics.group_lasso.lasso_problems import LAYERS, PROBLEMS, objective

SHARE = 0.1  # of lam_max
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def weights_of(problem, seed, scale=1.0):
    """Random, with some groups 0."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(problem.n_groups, generator=generator) < 0.7
    shapes = [(part.cyx.shape, part.groups) for part in problem.parts]
    return [scale * torch.randn(s, dtype=torch.float64, generator=generator) * kept[g] for s, g in shapes]


@every_problem
def test_certified_objective_is_that_of_the_samples(name):
    problem, (layers, _) = PROBLEMS[name], LAYERS[name]
    weights = weights_of(problem, 0)
    found = certify(problem, weights, 0.3)
    assert found.objective == pytest.approx(objective(layers, [w.numpy() for w in weights], 0.3), rel=1e-12)
    residuals = [(one.y - one.x @ w.numpy().T).T @ one.x / len(one.x) for one, w in zip(layers, weights, strict=True)]
    norms = np.zeros(problem.n_groups)
    for one, residual in zip(layers, residuals, strict=True):
        np.add.at(norms, one.groups, np.square(residual).sum(0))
    np.testing.assert_allclose(found.residual_norms, np.sqrt(norms), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(PROBLEMS)), seed=st.integers(0, 2**20), decade=st.floats(-6, 1), near=st.booleans())
@example(name="a group without inputs", seed=139, decade=1.0, near=False)  # <M, B> exceeds c: the best theta is below 0
def test_the_gap_bounds_the_distance_from_the_minimum(name, seed, decade, near):
    """At random points of any size, and at points any distance from the minimum."""
    problem = PROBLEMS[name]
    lam = SHARE * problem.lam_max
    best = Newton(tol=1e-10)(problem)(lam, None)
    weights = weights_of(problem, seed, 10**decade)
    if near:
        weights = [a + b for a, b in zip(best.weights, weights, strict=True)]
    found = certify(problem, weights, lam)
    assert found.gap * found.objective >= (found.objective - best.objective) - 1e-12 * found.objective  # rounding


@every_problem
def test_the_gap_is_the_same_with_products_given(name):
    problem = PROBLEMS[name]
    weights = weights_of(problem, 3)
    products = [w @ part.cxx for w, part in zip(weights, problem.parts, strict=True)]
    assert certify(problem, weights, 0.2, products).gap == pytest.approx(certify(problem, weights, 0.2).gap)


@every_problem
def test_a_reduced_problem_has_the_same_objective_at_restored_weights(name):
    problem = PROBLEMS[name]
    reduction = reduce(problem)
    small = weights_of(reduction.problem, 4)
    restored = reduction.restore(small)
    one, other = certify(reduction.problem, small, 0.2), certify(problem, restored, 0.2)
    assert one.objective == pytest.approx(other.objective, rel=1e-12)
    for part in reduction.problem.parts:
        assert len(part.cyx) <= part.cyx.shape[1]
        assert (part.cxx.diagonal() > 0).all()


def test_shrinking_solves_its_own_problem():
    problem = PROBLEMS["several layers"]
    weights, threshold = weights_of(problem, 5), 1.7
    found = shrink(problem, weights, threshold)
    before, after = problem.norms(weights), problem.norms(found)
    torch.testing.assert_close(after, (before - threshold).clamp(min=0), atol=1e-12, rtol=0)
    assert 0 < int((after == 0).sum()) < problem.n_groups
    for old, new, part in zip(weights, found, problem.parts, strict=True):
        kept = after[part.groups] > 0
        pull = (threshold / after[part.groups] * new)[:, kept]  # the gradient of the penalty at what is kept
        torch.testing.assert_close(new[:, kept] + pull, old[:, kept])
        assert (new[:, ~kept] == 0).all()


@every_problem
def test_a_proximal_step_never_raises_the_objective(name):
    problem = PROBLEMS[name]
    lam = SHARE * problem.lam_max
    largest = max(float(torch.linalg.eigvalsh(part.cxx)[-1]) for part in problem.parts)
    weights = weights_of(problem, 6)
    moved = proximal_step(problem, weights, problem.products(weights), lam, largest)
    assert certify(problem, moved, lam).objective < certify(problem, weights, lam).objective


@every_problem
def test_the_inner_minimum_solves_the_linear_system_of_its_objective(name):
    """M (R + lam D(1/eta)) = B, the document's system without its factor 2; and the value is (8) there."""
    problem = PROBLEMS[name]
    lam = SHARE * problem.lam_max
    eta = torch.rand(problem.n_groups, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) + 0.1
    found = Inner.at(problem, eta, lam)
    smooth = problem.variance / 2 + lam / 2 * float(eta.sum())
    for part, weight, product in zip(problem.parts, found.weights, found.products, strict=True):
        system = part.cxx + lam * torch.diag(1 / eta[part.groups])
        torch.testing.assert_close(weight, torch.linalg.solve(system, part.cyx.T).T)
        torch.testing.assert_close(product, weight @ part.cxx)
        smooth += float(0.5 * (weight @ system * weight).sum() - (weight * part.cyx).sum())
    assert found.value == pytest.approx(smooth)
    assert found.value >= certify(problem, found.weights, lam).objective - 1e-12 * smooth


def test_groups_of_eta_zero_have_no_weight():
    problem = PROBLEMS["several layers"]
    eta = torch.tensor([0.5, 0.0, 0.2, 0.0, 1.0], dtype=torch.float64)
    found = Inner.at(problem, eta, 0.1)
    assert ((problem.norms(found.weights) > 0) == (eta > 0)).all()
    tiny = Inner.at(problem, eta.clamp(min=1e-13), 0.1)
    assert tiny.value == pytest.approx(found.value, rel=1e-10)
