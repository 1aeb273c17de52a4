"""Backward elimination against the same done by refitting on samples, and its laws."""

import numpy as np
import pytest
import torch

from compresskit.numerics.group_lasso.problem import Part, Problem
from compresskit.numerics.selection import elimination
from compresskit.numerics.selection.elimination import eliminate
from compresskit.numerics.selection.refit import refit, squared_error
from tests.numerics.selection import plain


def samples(count, inputs, outputs, seed, dead=()):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, inputs)) @ generator.normal(size=(inputs, inputs))
    x[:, list(dead)] = 0
    y = x @ generator.normal(size=(inputs, outputs)) + 0.3 * generator.normal(size=(count, outputs))
    return x, y


def part_of(x, y, groups):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    return Part(x.T @ x / len(x), y.T @ x / len(x), torch.as_tensor(groups)), float(y.square().sum() / len(x))


def refitted_error(x, y, columns):
    """E||y - M x||^2 by least squares on samples."""
    fitted = x[:, columns] @ np.linalg.lstsq(x[:, columns], y, rcond=None)[0] if len(columns) else 0 * y
    return np.square(y - fitted).sum() / len(x)


def slow_order(layers, n_groups, stay=()):
    """Each time the group whose leaving costs least over all layers, by refitting all that could be."""
    left, order, errors = list(range(n_groups)), [], []
    columns = [[np.flatnonzero(np.asarray(g) == k) for k in range(n_groups)] for _, _, g in layers]

    def error(groups):
        kept = [np.concatenate([[], *(c[k] for k in groups)]).astype(int) for c in columns]
        return sum(refitted_error(x, y, k) for (x, y, _), k in zip(layers, kept, strict=True))

    errors.append(error(left))
    while len(left) > len(stay):
        gone = min((k for k in left if k not in stay), key=lambda k: error([g for g in left if g != k]))
        left.remove(gone)
        order.append(gone)
        errors.append(error(left))
    return order, errors


LAYERS = {
    "single inputs": [(samples(300, 12, 4, 0), list(range(12)))],
    "groups of three": [(samples(300, 12, 4, 1), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])],
    "unequal groups, out of order": [(samples(300, 10, 3, 2), [3, 0, 1, 1, 2, 3, 0, 0, 4, 2])],
    "two layers": [(samples(300, 6, 4, 3), [0, 1, 2, 3, 4, 5]), (samples(300, 9, 2, 4), [0, 0, 2, 2, 3, 3, 4, 5, 5])],
    "more outputs than inputs": [(samples(300, 5, 9, 5), [0, 1, 2, 3, 4])],
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_order_is_that_of_refitting_everything(name):
    layers = [(x, y, groups) for (x, y), groups in LAYERS[name]]
    made = [part_of(*layer) for layer in layers]
    n_groups = 1 + max(max(groups) for _, _, groups in layers)
    found = eliminate(Problem(tuple(part for part, _ in made), sum(c for _, c in made), n_groups))
    order, errors = slow_order(layers, n_groups)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.errors, errors, atol=1e-6 * errors[-1])  # the ridge of 1e-8 costs that much


@pytest.mark.parametrize("name", LAYERS)
def test_those_that_stay_are_fitted_to_the_end(name):
    layers = [(x, y, groups) for (x, y), groups in LAYERS[name]]
    made = [part_of(*layer) for layer in layers]
    n_groups = 1 + max(max(groups) for _, _, groups in layers)
    stay = torch.zeros(n_groups, dtype=torch.bool)
    problem = Problem(tuple(part for part, _ in made), sum(c for _, c in made), n_groups)
    stay[eliminate(problem).order[[0, 1]]] = True  # those that would leave first
    found = eliminate(problem, stay)
    order, errors = slow_order(layers, n_groups, stay.nonzero()[:, 0].tolist())
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.errors, errors, atol=1e-6 * errors[-1])
    assert torch.equal(found.kept(2), stay)
    assert int(found.kept(3).sum()) == 3
    assert bool(found.kept(3)[order[-1]])


def test_inputs_that_never_vary_leave_first_and_cost_nothing():
    x, y = samples(40, 8, 3, 6, dead=(2, 5))
    part, variance = part_of(x, y, range(8))
    found = eliminate(Problem((part,), variance, 8))
    assert set(found.order[:2].tolist()) == {2, 5}
    assert float(found.errors[2] - found.errors[0]) < 1e-9 * variance


def test_fewer_samples_than_inputs():
    x, y = samples(6, 10, 2, 7)
    part, variance = part_of(x, y, range(10))
    found = eliminate(Problem((part,), variance, 10))
    assert float(found.errors[4]) < 1e-5 * variance  # six samples are fitted by six inputs; the ridge leaves this much
    assert sorted(found.order.tolist()) == list(range(10))


def test_errors_are_those_of_the_refit_and_never_fall():
    x, y = samples(400, 40, 6, 8)
    part, variance = part_of(x, y, torch.arange(40) // 2)
    found = eliminate(Problem((part,), variance, 20))
    assert (found.errors.diff() >= 0).all()
    for count in (20, 13, 4, 1):
        kept = found.kept(count)
        assert int(kept.sum()) == count
        weight = refit(part, kept).weight
        error = squared_error(part, variance, weight)
        assert float(found.errors[20 - count]) == pytest.approx(error, abs=1e-6 * variance)  # the ridge


def test_a_group_without_columns_leaves_at_no_cost():
    x, y = samples(200, 4, 2, 9)
    part, variance = part_of(x, y, [0, 1, 3, 4])
    found = eliminate(Problem((part,), variance, 5))
    assert int(found.order[0]) == 2
    assert float(found.errors[1]) == float(found.errors[0])


def test_the_scale_of_the_problem_does_not_matter():
    x, y = samples(200, 9, 3, 10)
    part, variance = part_of(x, y, range(9))
    small = Part(part.cxx * 1e-6, part.cyx * 1e-6, part.groups)
    whole, scaled = eliminate(Problem((part,), variance, 9)), eliminate(Problem((small,), variance * 1e-6, 9))
    assert whole.order.tolist() == scaled.order.tolist()
    torch.testing.assert_close(scaled.errors * 1e6, whole.errors)


@pytest.mark.parametrize("width", [1, 7, 40, 256])
@pytest.mark.parametrize("sizes", [[1] * 60, [3] * 20, [1, 4, 2, 5, 3] * 4], ids=["single", "alike", "unequal"])
def test_updates_that_are_held_back_change_nothing(sizes, width, monkeypatch):
    """width: of the updates that are held back, so that columns are moved into holes often, seldom and never."""
    monkeypatch.setattr(elimination, "_WIDTH", width)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    shuffled = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))]
    layers = [(samples(900, len(groups), 6, 11), shuffled), (samples(900, len(groups), 70, 12), groups)]
    parts = [part_of(*xy, own) for xy, own in layers]
    problem = Problem(tuple(part for part, _ in parts), sum(c for _, c in parts), len(sizes))
    found = eliminate(problem)
    order, losses = plain.eliminate(problem)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.errors.diff(), torch.tensor(losses).double(), rtol=1e-6, atol=1e-9)


def test_a_wide_layer_whose_updates_are_held_back():
    x, y = samples(1200, 600, 20, 13)
    part, variance = part_of(x, y, torch.arange(600) // 2)
    problem = Problem((part,), variance, 300)
    found = eliminate(problem)
    order, losses = plain.eliminate(problem)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.errors.diff(), torch.tensor(losses).double(), rtol=1e-5, atol=1e-9 * variance)


def test_a_layer_that_reads_few_of_the_groups():
    (x, y), (other_x, other_y) = samples(300, 12, 4, 14), samples(300, 3, 2, 15)
    wide, narrow = part_of(x, y, range(12)), part_of(other_x, 1e-6 * other_y, [0, 1, 2])
    found = eliminate(Problem((wide[0], narrow[0]), wide[1] + narrow[1], 12))
    alone = eliminate(Problem((wide[0],), wide[1], 12))
    assert found.order.tolist() == alone.order.tolist()
