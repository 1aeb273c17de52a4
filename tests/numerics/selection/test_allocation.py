"""Budgets among layers against all choices there are."""

import itertools

import pytest
import torch

from compresskit.numerics.selection.allocation import allocate


def chained(kept):
    """Weights of three layers one behind another: products of neighbours."""
    return kept[:, 0] * kept[:, 1] + kept[:, 1] * kept[:, 2] + 10 * kept[:, 2]


def curves(seed):
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.arange(9, 0, -1) * width for width in (3, 2, 1)]
    rises = [torch.rand(9, generator=generator, dtype=torch.float64).sort().values for _ in range(3)]  # ever dearer
    losses = [rise.cumsum(0) * torch.rand(1, generator=generator, dtype=torch.float64) for rise in rises]
    return kept, [loss - loss[0] for loss in losses]


def total(losses, choice):
    return sum(float(loss[index]) for loss, index in zip(losses, choice, strict=True))


def cost(kept, choice):
    return float(chained(torch.tensor([[float(k[i]) for k, i in zip(kept, choice, strict=True)]])))


def best(kept, losses, limit):
    everything = itertools.product(*(range(len(k)) for k in kept))
    return min((c for c in everything if cost(kept, c) <= limit), key=lambda choice: total(losses, choice))


def test_near_the_best_of_all_choices():
    """Greedy with exchanges need not find the best, since this is a knapsack problem; it comes near it."""
    exact = 0
    for seed in range(60):
        kept, losses = curves(seed)
        limit = cost(kept, (0, 0, 0)) * (0.1 + 0.8 * (seed / 60))
        found = allocate(kept, losses, chained, limit)
        assert cost(kept, found) <= limit
        least = total(losses, best(kept, losses, limit))
        assert total(losses, found) <= 1.1 * least + 1e-12
        exact += total(losses, found) <= least + 1e-12
    assert exact >= 48


def test_nothing_is_given_up_where_all_fits():
    kept, losses = curves(0)
    assert allocate(kept, losses, chained, cost(kept, (0, 0, 0))) == [0, 0, 0]


def test_a_layer_that_costs_nothing_to_thin_goes_first():
    kept, losses = curves(1)
    losses[1] = torch.zeros(9, dtype=torch.float64)
    found = allocate(kept, losses, chained, 0.6 * cost(kept, (0, 0, 0)))
    assert found[1] > 0
    assert found[0] == found[2] == 0


def test_a_limit_below_the_last_points_is_refused():
    kept, losses = curves(2)
    with pytest.raises(ValueError, match="even the smallest choice costs"):
        allocate(kept, losses, chained, cost(kept, (8, 8, 8)) - 1)
    assert allocate(kept, losses, chained, cost(kept, (8, 8, 8))) == [8, 8, 8]


def test_costs_that_round_by_their_place_among_others_end():
    """As sums in other orders do: at the limit itself, a choice fits or does not by where it stands in a batch."""
    kept, losses = curves(6)
    limit = cost(kept, (4, 4, 4))

    def by_place(amounts):
        return chained(amounts) + torch.where(torch.arange(len(amounts)) == 0, 1e-9, -1e-9)

    found = allocate(kept, losses, by_place, limit)
    assert total(losses, found) <= 1.1 * total(losses, best(kept, losses, limit))
