"""Pareto fronts against the definition, point by point."""

import math

from hypothesis import given
from hypothesis import strategies as st

from compresskit.numerics.pareto import pareto_front

NUMBERS = st.sampled_from([-math.inf, -1.5, 0.0, 1.0, 2.0, 3.0, math.inf, math.nan])


def dominates(one, other):
    no_worse = one[0] <= other[0] and one[1] >= other[1]
    return no_worse and (one[0] < other[0] or one[1] > other[1])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    expected = {
        place
        for place, point in enumerate(points)
        if not any(map(math.isnan, point)) and not any(dominates(other, point) for other in points)
    }
    found = pareto_front([cost for cost, _ in points], [value for _, value in points])
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert [points[place] for place in found] == sorted(points[place] for place in found)
    assert all(a < b for a, b in zip(found, found[1:], strict=False) if points[a] == points[b])


def test_there_may_be_no_points():
    assert pareto_front([], []) == []
