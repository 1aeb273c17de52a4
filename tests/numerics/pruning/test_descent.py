"""Sharing out a size by losses, against the same done by looking at every move each time."""

import numpy as np
import pytest

from compresskit.numerics.pruning.descent import convex, descent

AT = np.linspace(0, 1, 9)


def slow_descent(losses, at, size):
    """Each time the move of least loss for what it saves, of all groups, computed anew."""
    places = [0] * len(losses)
    path = [at[places]]
    while True:
        best = None
        for group in range(len(losses)):
            for further in range(places[group] + 1, len(at)):
                moved = [*places[:group], further, *places[group + 1 :]]
                saved = size(at[places]) - size(at[moved])
                if saved > 0:
                    price = (losses[group, further] - losses[group, places[group]]) / saved
                    best = min(best or (np.inf, None), (price, moved), key=lambda move: move[0])
                    break
        if best is None:
            return path
        places = best[1]
        path.append(at[places])


def chained(widths, fine=False):
    """Weights between neighbours, of whole channels; fine: of parts of them, too."""

    def size(ratios):
        kept = (1 - np.asarray(ratios)) * widths
        kept = kept if fine else np.maximum(np.ceil(kept - 1e-9), 1)
        return float((kept[1:] * kept[:-1]).sum() + kept.sum())

    return size


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_descent_as_by_looking_at_every_move(seed, fine):
    draws = np.random.default_rng(seed)
    widths = draws.integers(3, 40, size=6)
    losses = np.cumsum(np.sort(draws.exponential(size=(6, len(AT))), axis=1), axis=1)
    size = chained(widths, fine)
    found, expected = descent(losses, AT, size), slow_descent(losses, AT, size)
    assert size(found[0]) == size(np.zeros(6))
    assert size(found[-1]) == size(np.ones(6))
    sizes = [size(ratios) for ratios in found]
    assert sizes == sorted(sizes, reverse=True)
    # what a group saves falls as its neighbours go, so a price never falls and the first of the heap is the least
    assert len(found) == len(expected)
    assert np.allclose(found, expected)


def test_a_group_smaller_than_a_place_goes_by_whole_channels():
    """Of three channels, an eighth is none: the next place at which one goes is taken."""
    widths = np.array([3, 3])
    found = descent(np.array([AT, 1e6 * AT]), AT, lambda ratios: float(np.ceil((1 - ratios) * widths - 1e-9).sum()))
    assert [float(np.ceil((1 - ratios[0]) * 3 - 1e-9)) for ratios in found[:4]] == [3, 2, 1, 0]
    assert found[3][1] == 0


def test_convex_is_the_greatest_convex_function_below_the_points():
    xs, ys = np.array([0, 0.2, 0.4, 0.6, 0.8]), np.array([0, 3.0, 1.0, 2.5, 7.0])
    hull = convex(xs, ys, xs)
    assert np.allclose(hull, [0, 0.5, 1.0, 2.5, 7.0])
    fine = np.linspace(0, 1, 101)
    values = convex(xs, ys, fine)
    assert (np.diff(values, 2) >= -1e-12).all()
    assert values[-1] == pytest.approx(7.0 + 4.5)  # on at the last slope
