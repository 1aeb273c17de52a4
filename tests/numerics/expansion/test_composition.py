"""Products of kernels against loops over taps, and the laws of their order."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from compresskit.numerics.expansion import composition
from compresskit.numerics.expansion.composition import cheapest_order, compose, contract, cost, to_kernel, to_weight
from compresskit.numerics.expansion.fit import fit_factors

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def kernel(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_compose(second, first):
    groups, out, *a, mid = second.shape
    _, _, *b, inputs = first.shape
    result = np.zeros((groups, out, *(x + y - 1 for x, y in zip(a, b, strict=True)), inputs))
    for group in range(groups):
        for s in itertools.product(*map(range, a)):
            for t in itertools.product(*map(range, b)):
                for o, i, m in itertools.product(range(out), range(inputs), range(mid)):
                    tap = tuple(x + y for x, y in zip(s, t, strict=True))
                    result[(group, o, *tap, i)] += float(second[(group, o, *s, m)] * first[(group, m, *t, i)])
    return result


@pytest.mark.parametrize(
    ("second", "first"),
    [
        ((1, 3, 4), (1, 4, 2)),  # matrices
        ((1, 3, 3, 4), (1, 4, 3, 2)),
        ((2, 3, 3, 2, 2), (2, 2, 1, 3, 3)),
        ((1, 2, 1, 1, 3), (1, 3, 3, 3, 2)),
        ((1, 2, 3, 3, 3), (1, 3, 1, 1, 2)),
        ((2, 2, 2, 1, 2, 2), (2, 2, 1, 2, 3, 1)),
    ],
)
@pytest.mark.parametrize("added", ["_added_by_index", "_added_by_shifts"])
def test_compose_is_the_sum_over_pairs_of_taps(second, first, added, monkeypatch):
    monkeypatch.setattr(composition, "_added_up", getattr(composition, added))
    second, first = kernel(0, *second), kernel(1, *first)
    torch.testing.assert_close(
        compose(second, first), torch.from_numpy(slow_compose(second, first)), rtol=0, atol=1e-13
    )


def test_a_product_made_in_inference_mode_leaves_nothing_that_training_could_not_use():
    kernels = [kernel(0, 1, 2, 3, 4, 2), kernel(1, 1, 2, 4, 3, 2)]  # of sizes that no other test has
    with torch.inference_mode():
        compose(*kernels)
    compose(*(k.requires_grad_() for k in kernels)).sum().backward()
    assert kernels[0].grad is not None


def test_layouts_are_inverse():
    weight = kernel(0, 6, 2, 3, 5)
    assert to_kernel(weight, 3).shape == (3, 2, 3, 5, 2)
    assert torch.equal(to_weight(to_kernel(weight, 3)), weight)
    assert torch.equal(to_weight(to_kernel(kernel(1, 4, 3), 1)), kernel(1, 4, 3))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("taps", [(3,), (3, 1), (3, 2, 2)])
def test_contraction_does_what_the_layers_do_one_after_another(taps, groups):
    widths, ones = (2, 3, 4, 2), (1,) * len(taps)
    weights = [
        kernel(n, groups * o, i, *k)
        for n, (i, o, k) in enumerate(zip(widths, widths[1:], (ones, taps, taps), strict=False))
    ]
    biases = [kernel(9 + n, len(weight)) for n, weight in enumerate(weights)]
    x = kernel(20, 2, 2 * groups, *[7] * len(taps))
    expected = x
    for weight, bias in zip(weights, biases, strict=True):
        expected = CONV[len(taps)](expected, weight, bias, groups=groups)
    product, bias = contract([to_kernel(weight, groups) for weight in weights], biases)
    got = CONV[len(taps)](x, to_weight(product), bias, groups=groups)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_bias_that_only_the_first_layer_has_is_not_lost():
    first, second = kernel(0, 1, 3, 1, 2), kernel(1, 1, 2, 3, 3)
    _, bias = contract([first, second], [kernel(2, 3), None])
    torch.testing.assert_close(bias, second[0].sum(1) @ kernel(2, 3), rtol=0, atol=1e-14)
    assert contract([first, second], [None, None])[1] is None


def orders(first, last):
    if last - first == 1:
        yield first
    for cut in range(first + 1, last):
        yield from itertools.product(orders(first, cut), orders(cut, last))


def count(shapes, order):
    """(shape, multiply-adds), counted pair by pair."""
    if isinstance(order, int):
        return shapes[order], 0
    (first, cost1), (second, cost2) = count(shapes, order[0]), count(shapes, order[1])
    groups, out, *a, mid = second
    pairs = [(s, t) for s in itertools.product(*map(range, a)) for t in itertools.product(*map(range, first[2:-1]))]
    taps = [x + y - 1 for x, y in zip(a, first[2:-1], strict=True)]
    return (groups, out, *taps, first[-1]), cost1 + cost2 + groups * out * mid * first[-1] * len(pairs)


@pytest.mark.parametrize("seed", range(8))
def test_the_order_is_the_cheapest_of_all(seed):
    random = np.random.default_rng(seed)
    widths = random.integers(1, 9, 6)
    taps = random.integers(1, 4, (5, 2))
    shapes = [(1, int(o), *map(int, k), int(i)) for i, o, k in zip(widths, widths[1:], taps, strict=False)]
    every = {order: count(shapes, order)[1] for order in orders(0, len(shapes))}
    assert len(every) == 14
    assert cost(shapes) == every[cheapest_order(shapes)] == min(every.values())


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_the_cheapest_with_both_gradients_too(seed):
    """Each gradient of a product is a product of the same three sizes; torch's own counter knows nothing of that."""
    random = np.random.default_rng(seed)
    widths = random.integers(1, 9, 4)
    taps = [(1, 1), tuple(map(int, random.integers(1, 4, 2))), (1, 1)]
    shapes = [(1, int(o), *k, int(i)) for i, o, k in zip(widths, widths[1:], taps, strict=False)]

    def macs(order):
        kernels = [kernel(n, *shape).requires_grad_() for n, shape in enumerate(shapes)]
        with FlopCounterMode(display=False) as counter:
            contract(kernels, [None] * 3, order)[0].sum().backward()
        return counter.get_total_flops() // 2

    every = {order: macs(order) for order in orders(0, 3)}
    assert every[cheapest_order(shapes)] == min(every.values()) == 3 * cost(shapes)


@pytest.mark.parametrize("name", ["cl", "cl, depthwise", "ck", "fc, three factors"])
def test_gradients_are_those_of_the_naive_product(name):
    shapes = FACTORS[name]
    factors = [kernel(n, *shape).movedim(-1, 2).contiguous().requires_grad_() for n, shape in enumerate(shapes)]
    product = contract([factor.movedim(2, -1) for factor in factors], [None] * len(shapes))[0]
    toward = kernel(9, *product.shape)
    naive = factors[0].movedim(2, -1)
    for factor in factors[1:]:
        naive = naive_product(factor.movedim(2, -1), naive)
    torch.testing.assert_close(product, naive, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((value * toward).sum(), factors) for value in (product, naive))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def naive_product(second, first):
    """As `compose`, pair of taps by pair of taps."""
    a, b = second.shape[2:-1], first.shape[2:-1]
    taps = [x + y - 1 for x, y in zip(a, b, strict=True)]
    result = second.new_zeros(*second.shape[:2], *taps, first.shape[-1])
    for s in itertools.product(*map(range, a)):
        for t in itertools.product(*map(range, b)):
            place = tuple(x + y for x, y in zip(s, t, strict=True))
            pair = torch.einsum("gom,gmi->goi", second[(..., *s, slice(None))], first[(..., *t, slice(None))])
            result[(slice(None), slice(None), *place)] += pair
    return result


def test_any_order_gives_the_same_product():
    kernels = [kernel(0, 1, 3, 3, 2), kernel(1, 1, 4, 1, 3), kernel(2, 1, 2, 2, 4)]
    one, other = (contract(kernels, [None] * 3, order)[0] for order in (((0, 1), 2), (0, (1, 2))))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


FACTORS = {
    "cl": [(1, 8, 1, 1, 3), (1, 12, 3, 3, 8), (1, 4, 1, 1, 12)],
    "cl, depthwise": [(4, 3, 1, 1, 1), (4, 3, 3, 3, 3), (4, 1, 1, 1, 3)],
    "ck": [(1, 8, 3, 3, 2), (1, 16, 3, 3, 8), (1, 4, 3, 3, 16)],
    "ck, solved for its first factor": [(1, 40, 3, 1), (1, 1, 3, 40)],
    "fc": [(1, 8, 4), (1, 5, 8)],
    "fc, three factors": [(1, 8, 4), (1, 9, 8), (1, 5, 9)],
}


@pytest.mark.parametrize("shapes", FACTORS.values(), ids=FACTORS)
def test_fitted_factors_multiply_to_the_kernel(shapes):
    start = [kernel(n, *shape) for n, shape in enumerate(shapes)]
    goal = contract([kernel(9 + n, *shape) for n, shape in enumerate(shapes)], [None] * len(shapes))[0]
    found = fit_factors(goal, start)
    product = contract(found.kernels, [None] * len(shapes))[0]
    torch.testing.assert_close(product, goal, rtol=1e-9, atol=1e-9)  # two pseudo-inverses of random matrices
    assert found.residual == pytest.approx(float((product - goal).norm() / goal.norm()), abs=1e-14)
    unchanged = [torch.equal(a, b) for a, b in zip(found.kernels, start, strict=True)]
    assert unchanged.count(False) == 1  # one factor carries it all


def test_the_change_is_the_smallest_one():
    start = [kernel(0, 1, 6, 3), kernel(1, 1, 5, 6)]
    goal = kernel(2, 1, 5, 3)
    found = fit_factors(goal, start)
    change = found.kernels[1] - start[1]
    other = torch.linalg.lstsq(start[0][0].T, (goal - start[1] @ start[0])[0].T, driver="gelsd").solution.T
    torch.testing.assert_close(change[0], other, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_a_product_says_how_far_it_is():
    start = [kernel(0, 1, 1, 4), kernel(1, 1, 5, 1)]  # rank one
    goal = kernel(2, 1, 5, 4)
    singular = torch.linalg.svdvals(goal[0])
    found = fit_factors(goal, start)
    assert found.residual == pytest.approx(float(singular[1:].norm() / singular.norm()), rel=1e-2)  # sweeps stop early
    assert fit_factors(torch.zeros_like(goal), start).residual <= 1e-8
