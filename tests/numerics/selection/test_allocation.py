"""Budgets among layers against all choices there are."""

import itertools

import pytest
import torch

from compresskit.numerics.selection.allocation import allocate
from compresskit.numerics.selection.cost import Cost
from tests.numerics.selection import plain

# weights of three layers one behind another: products of neighbours
CHAINED = Cost(
    0.0, torch.tensor([0.0, 0, 10]).double(), torch.tensor([[0, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]]).double()
)


def curves(seed):
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.arange(9, 0, -1) * width for width in (3, 2, 1)]
    rises = [torch.rand(9, generator=generator, dtype=torch.float64).sort().values for _ in range(3)]  # ever dearer
    losses = [rise.cumsum(0) * torch.rand(1, generator=generator, dtype=torch.float64) for rise in rises]
    return kept, [loss - loss[0] for loss in losses]


def total(losses, choice):
    return sum(float(loss[index]) for loss, index in zip(losses, choice, strict=True))


def cost(kept, choice):
    return float(CHAINED(torch.tensor([[float(k[i]) for k, i in zip(kept, choice, strict=True)]], dtype=torch.float64)))


def best(kept, losses, limit):
    everything = itertools.product(*(range(len(k)) for k in kept))
    return min((c for c in everything if cost(kept, c) <= limit), key=lambda choice: total(losses, choice))


def test_near_the_best_of_all_choices():
    """Greedy with exchanges need not find the best, since this is a knapsack problem; it comes near it."""
    exact = 0
    for seed in range(60):
        kept, losses = curves(seed)
        limit = cost(kept, (0, 0, 0)) * (0.1 + 0.8 * (seed / 60))
        found = allocate(kept, losses, CHAINED, limit)
        assert cost(kept, found) <= limit
        least = total(losses, best(kept, losses, limit))
        assert total(losses, found) <= 1.1 * least + 1e-12
        exact += total(losses, found) <= least + 1e-12
    assert exact >= 48


def test_nothing_is_given_up_where_all_fits():
    kept, losses = curves(0)
    assert allocate(kept, losses, CHAINED, cost(kept, (0, 0, 0))) == [0, 0, 0]


def test_a_layer_that_costs_nothing_to_thin_goes_first():
    kept, losses = curves(1)
    losses[1] = torch.zeros(9, dtype=torch.float64)
    found = allocate(kept, losses, CHAINED, 0.6 * cost(kept, (0, 0, 0)))
    assert found[1] > 0
    assert found[0] == found[2] == 0


def test_a_limit_below_the_last_points_is_refused():
    kept, losses = curves(2)
    with pytest.raises(ValueError, match="even the smallest choice costs"):
        allocate(kept, losses, CHAINED, cost(kept, (8, 8, 8)) - 1)
    assert allocate(kept, losses, CHAINED, cost(kept, (8, 8, 8))) == [8, 8, 8]


def test_a_limit_that_rounding_misses_is_met():
    """Sums of equal terms differ by their order: at the limit itself, what fits would depend on it."""
    kept, losses = curves(6)
    limit = cost(kept, (4, 4, 4)) * (1 - 1e-15)
    found = allocate(kept, losses, CHAINED, limit)
    assert total(losses, found) <= 1.1 * total(losses, best(kept, losses, limit))


def random_problem(seed, curves_convex=True):
    """Curves of unequal lengths, weights between random pairs of layers, and something that is no polynomial."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 9, (1,), generator=generator))
    lengths = torch.randint(2, 12, (n,), generator=generator).tolist()
    kept = [torch.arange(length, 0, -1) for length in lengths]
    rises = [torch.rand(length, generator=generator, dtype=torch.float64) for length in lengths]
    losses = [(rise.sort().values if curves_convex else rise).cumsum(0) for rise in rises]
    coupling = torch.rand(n, n, generator=generator, dtype=torch.float64)
    coupling = torch.where(coupling + coupling.T > 1.2, coupling + coupling.T, 0.0)
    linear = torch.rand(n, generator=generator, dtype=torch.float64)
    scale = torch.rand(n, generator=generator, dtype=torch.float64)
    return kept, losses, Cost(3.0, linear, coupling, lambda k: scale * k.clamp(min=0).sqrt())


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_the_same_as_computing_every_cost_again(seed, convex):
    kept, losses, whole = random_problem(seed, convex)
    full = torch.stack([amounts[0] for amounts in kept])[None].double()
    least = torch.stack([amounts[-1] for amounts in kept])[None].double()
    low, high = float(whole(least)), float(whole(full))
    for part in (0.1, 0.5, 0.9):
        limit = low + part * (high - low)
        found, expected = allocate(kept, losses, whole, limit), plain.allocate(kept, losses, whole, limit)
        assert found == expected
        amounts = torch.stack([k[i] for k, i in zip(kept, found, strict=True)])[None].double()
        assert float(whole(amounts)) <= limit * (1 + 1e-12)


def test_a_curve_that_falls_again_is_followed():
    """Moves down that lower the loss are taken also where the limit is met."""
    kept, losses = curves(7)
    losses[1] = losses[1].clone()
    losses[1][5] = -1.0
    assert allocate(kept, losses, CHAINED, cost(kept, (0, 0, 0)))[1] == 5


def test_a_cost_that_rises_where_amounts_fall_is_refused():
    """(2, 2) costs 0, (1, 2) and (2, 1) cost 1, (1, 1) costs -1: there is no first step."""
    coupling = torch.tensor([[0.0, -1.5], [-1.5, 0.0]], dtype=torch.float64)
    odd = Cost(-8.0, torch.full((2,), 5.0, dtype=torch.float64), coupling)
    kept, losses = [torch.tensor([2, 1])] * 2, [torch.tensor([0.0, 1.0], dtype=torch.float64)] * 2
    with pytest.raises(ValueError, match="rises where amounts fall"):
        allocate(kept, losses, odd, -0.5)
