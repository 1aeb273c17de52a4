"""A size shared among groups by what each loses: shares of them go where least is lost for what is saved."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

import numpy as np

from compresskit.numerics.pruning.ratios import Floats


def convex(xs: Floats, ys: Floats, at: Floats) -> Floats:
    """Values at `at` of the lower convex hull of points, and on at its last slope beyond them."""
    hull = [0]
    for new in range(1, len(xs)):
        while len(hull) > 1 and _slope(xs, ys, hull[-2], hull[-1]) >= _slope(xs, ys, hull[-1], new):
            hull.pop()
        hull.append(new)
    end = ys[hull[-1]] + (at - xs[hull[-1]]) * _slope(xs, ys, hull[-2], hull[-1])
    return np.asarray(np.where(at > xs[hull[-1]], end, np.interp(at, xs[hull], ys[hull])))


def _slope(xs: Floats, ys: Floats, one: int, other: int) -> float:
    return float((ys[other] - ys[one]) / (xs[other] - xs[one]))


def descent(losses: Floats, at: Floats, size: Callable[[Floats], float]) -> list[Floats]:
    """Ratios from none gone on: each time the group goes one place on in `at` that loses least for the size it saves.

    losses: (groups, places). Ends where nothing saves any more. What a group saves depends on the others, and falls as
    they do; it is looked at again before a group goes, so that each step takes a few sizes, and not one of each group.
    """
    places = np.zeros(len(losses), dtype=np.int64)
    path, now = [at[places]], size(at[places])

    def move(group: int) -> tuple[float, int]:
        """Loss for what is saved, and the next place at which anything is: a place may be less than a channel."""
        place = places[group]
        for further in range(place + 1, len(at)):
            ratios = at[places]
            ratios[group] = at[further]
            saved = now - size(ratios)
            if saved > 0:
                return float((losses[group, further] - losses[group, place]) / saved), further
        return np.inf, place

    heap = [(move(group)[0], group) for group in range(len(losses))]
    heapify(heap)
    while heap:
        _, group = heappop(heap)
        price, further = move(group)
        if not np.isfinite(price):
            continue
        if heap and price > heap[0][0]:
            heappush(heap, (price, group))
            continue
        places[group] = further
        path.append(at[places])
        now = size(at[places])
        heappush(heap, (move(group)[0], group))
    return path
