"""A budget shared among layers: how much each keeps, when what they cost together depends on all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from compresskit.numerics.selection.cost import Cost

_ROUNDING = 1e-12  # relative: sums of equal terms differ by their order, and choices would alternate


def allocate(kept: Sequence[Tensor], losses: Sequence[Tensor], cost: Cost, limit: float) -> list[int]:
    """Index of the chosen point of each curve, of least total loss with cost at most `limit`, but for rounding (1e-12).

    kept, losses: of each curve (points,), the most first; amounts go down. cost: one that does not rise when an amount
    falls.
    Greedy: of all moves down any curve, the one of least loss for each unit of cost saved, until the limit is met. Then
    single moves, and pairs of one up and one down, are taken while they lower the loss within the limit. Not always the
    best there is: choosing so is a knapsack problem.
    Raises ValueError if even the last points cost more.
    """
    starts = [_Choices(kept, losses, cost, limit) for _ in range(2)]
    least = float(cost(starts[0].last_amounts()))
    if least > limit + starts[0].rounding:
        raise ValueError(f"even the smallest choice costs {least:g}, above {limit:g}")
    for choices, overshoot in zip(starts, (False, True), strict=True):
        _descend(choices, overshoot)
        _polish(choices)
    return min(starts, key=lambda choices: choices.loss).chosen.tolist()


class _Choices:
    """A point of each curve, and what moving one of them to another changes.

    The cost is quadratic, so that a move changes its slope at the layers that share a weight with the moved one alone.
    amounts, losses: (n, points), curves with fewer points filled up; there: which points are.
    """

    def __init__(self, kept: Sequence[Tensor], losses: Sequence[Tensor], cost: Cost, limit: float) -> None:
        self.amounts = pad_sequence([amounts.double() for amounts in kept], batch_first=True)
        self.losses = pad_sequence(list(losses), batch_first=True)
        self.last = torch.tensor([len(amounts) - 1 for amounts in kept])
        self.points = torch.arange(self.amounts.shape[1])
        self.there = self.points <= self.last[:, None]
        self.chosen = torch.zeros_like(self.last)
        self.coupling, self.rounding = 2 * cost.coupling, _ROUNDING * abs(limit)
        self.square, self.own = cost.coupling.diagonal(), cost.alone(self.amounts.T).T
        start = self.amounts[:, 0]
        self.slope = cost.linear + self.coupling @ start
        self.surplus = float(cost(start[None])) - limit
        self.loss = float(self.losses[:, 0].sum())

    def last_amounts(self) -> Tensor:
        """(1, n)."""
        return self.amounts.gather(1, self.last[:, None]).T

    def steps(self, rows: Tensor) -> Tensor:
        """(rows, points) by how much the amounts change where one of these curves moves to each of its points."""
        return self.amounts[rows] - self.amounts[rows, self.chosen[rows]][:, None]

    def costs(self, rows: Tensor) -> Tensor:
        """(rows, points) change of the cost."""
        steps = self.steps(rows)
        own = self.own[rows] - self.own[rows, self.chosen[rows]][:, None]
        return steps * (self.slope[rows, None] + self.square[rows, None] * steps) + own

    def added(self, rows: Tensor) -> Tensor:
        """(rows, points) change of the loss."""
        return self.losses[rows] - self.losses[rows, self.chosen[rows]][:, None]

    def move(self, curve: int, point: int) -> None:
        row = torch.tensor([curve])
        self.surplus += float(self.costs(row)[0, point])
        self.loss += float(self.added(row)[0, point])
        self.slope += self.coupling[curve] * self.steps(row)[0, point]
        self.chosen[curve] = point


def _descend(choices: _Choices, overshoot: bool) -> None:
    """Down from the first points. overshoot: whether what a move saves beyond the limit counts in its price.

    The best move of each curve is kept, and found again where a move changed its price.
    """
    n = len(choices.chosen)
    price, point, most = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    point, stale = point.long(), torch.arange(n)
    while choices.surplus > choices.rounding:
        saved = -choices.costs(stale)
        useful = saved if overshoot else saved.clamp(max=choices.surplus)
        open_ = choices.there[stale] & (choices.points > choices.chosen[stale, None]) & (useful > 0)
        prices = torch.where(open_, choices.added(stale) / useful.clamp(min=1e-300), torch.inf)
        point[stale] = prices.argmin(1)
        price[stale] = prices.gather(1, point[stale, None])[:, 0]
        most[stale] = saved.where(open_, 0.0).amax(1)
        best = int(price.argmin())
        if not bool(price[best] < torch.inf):
            raise ValueError("the cost rises where amounts fall")
        choices.move(best, int(point[best]))
        changed = choices.coupling[best] != 0
        changed[best] = True
        if not overshoot:
            changed |= most > choices.surplus
        (stale,) = changed.nonzero(as_tuple=True)


def _polish(choices: _Choices) -> None:
    while (found := _best_exchange(choices)) is not None:
        for curve, point in found:
            choices.move(curve, point)


def _best_exchange(choices: _Choices) -> list[tuple[int, int]] | None:
    """The moves that lower the loss most within the limit: one, or one up by a point and another down."""
    rows = torch.arange(len(choices.chosen))
    costs, added, room = choices.costs(rows), choices.added(rows), choices.rounding - choices.surplus
    single = torch.where(choices.there & (costs <= room), added, torch.inf)
    best = int(single.argmin())
    gain, moves = float(single.flatten()[best]), [divmod(best, len(choices.points))]
    (up,) = (choices.chosen > 0).nonzero(as_tuple=True)
    before = choices.chosen[up] - 1
    lowered, steps = added[up, before], choices.steps(rows)
    if len(up):
        down = choices.there & (choices.points > choices.chosen[:, None]) & (added < gain - lowered.min())
        curve, point = down.nonzero(as_tuple=True)
        total = costs[up, before, None] + costs[curve, point]
        total += choices.coupling[up][:, curve] * steps[up, before, None] * steps[curve, point]
        fits = (total <= room) & (up[:, None] != curve)
        pairs = torch.where(fits, lowered[:, None] + added[curve, point], torch.inf)
        if pairs.numel() and float(pairs.min()) < gain:
            first, second = divmod(int(pairs.argmin()), len(curve))
            gain = float(pairs.min())
            moves = [(int(up[first]), int(before[first])), (int(curve[second]), int(point[second]))]
    return moves if gain < -_ROUNDING * abs(choices.loss) else None
