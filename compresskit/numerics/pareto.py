"""Pareto fronts of what costs something and is worth something."""

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places of the points that no other dominates, by rising cost, of equal ones in the order given.

    A point dominates another if it costs no more, is worth no less, and differs in one of the two. costs, values: of
    each point, lower and higher being better. Points with NaN are on no front and dominate nothing.
    """
    known = [place for place, pair in enumerate(zip(costs, values, strict=True)) if not any(map(math.isnan, pair))]
    front: list[int] = []
    for place in sorted(known, key=lambda place: (costs[place], -values[place])):
        last = front[-1] if front else None
        equal = last is not None and (costs[last], values[last]) == (costs[place], values[place])
        if last is None or equal or values[place] > values[last]:
            front.append(place)
    return front
