"""A budget shared among layers: how much each keeps, when what they cost together depends on all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Cost = Callable[[Tensor], Tensor]  # (m, n) amounts kept -> (m,) costs
_ROUNDING = 1e-12  # relative: sums of equal terms differ by their place among others, and choices would alternate


def allocate(kept: Sequence[Tensor], losses: Sequence[Tensor], cost: Cost, limit: float) -> list[int]:
    """Index of the chosen point of each curve, of least total loss with cost at most `limit`.

    kept, losses: of each curve (points,), the most first; amounts go down. cost: of amounts, one of each curve; any
    function that does not rise when an amount falls (the weights of a layer are a product of two).
    Greedy: of all moves down any curve, the one of least loss for each unit of cost saved, until the limit is met. Then
    single moves, and pairs of one up and one down, are taken while they lower the loss within the limit. Not always the
    best there is: choosing so is a knapsack problem.
    Raises ValueError if even the last points cost more.
    """
    last = torch.tensor([len(amounts) - 1 for amounts in kept])
    least = float(_costs(kept, last[None], cost))
    if least > limit:
        raise ValueError(f"even the smallest choice costs {least:g}, above {limit:g}")
    starts = [_greedy(last, kept, losses, cost, limit, overshoot) for overshoot in (False, True)]
    found = [_polished(start, last, kept, losses, cost, limit) for start in starts]
    return min(found, key=lambda chosen: float(_losses(losses, chosen[None]))).tolist()


def _greedy(
    last: Tensor, kept: Sequence[Tensor], losses: Sequence[Tensor], cost: Cost, limit: float, overshoot: bool
) -> Tensor:
    """Down from the first points. overshoot: whether what a move saves beyond the limit counts in its price."""
    chosen = torch.zeros_like(last)
    while (now := float(_costs(kept, chosen[None], cost))) > limit:
        moves = _moves(chosen, last, down=True)
        saved = now - _costs(kept, moves, cost)
        useful = saved if overshoot else saved.clamp(max=now - limit)
        added = _losses(losses, moves) - _losses(losses, chosen[None])
        chosen = moves[int(torch.where(useful > 0, added / useful.clamp(min=1e-300), torch.inf).argmin())]
    return chosen


def _polished(
    chosen: Tensor, last: Tensor, kept: Sequence[Tensor], losses: Sequence[Tensor], cost: Cost, limit: float
) -> Tensor:
    now = float(_losses(losses, chosen[None]))
    while True:
        singles = _moves(chosen, last, down=False)
        pairs = [_moves(single, last, down=True) for single in _nearest(singles, chosen)]
        moves = torch.cat([chosen[None], singles, *pairs])
        loss = torch.where(_costs(kept, moves, cost) <= limit, _losses(losses, moves), torch.inf)
        best = int(loss.argmin())
        if not loss[best] < now - _ROUNDING * abs(now):
            return chosen
        chosen, now = moves[best], float(loss[best])


def _moves(chosen: Tensor, last: Tensor, *, down: bool) -> Tensor:
    """(m, n) choices that differ from `chosen` in one curve: all further points down it, or all up."""
    found = []
    for curve, index in enumerate(chosen.tolist()):
        points = range(index + 1, int(last[curve]) + 1) if down else range(index)
        moved = chosen.repeat(len(points), 1)
        moved[:, curve] = torch.tensor(points)
        found.append(moved)
    return torch.cat(found)


def _nearest(singles: Tensor, chosen: Tensor) -> list[Tensor]:
    """Of the moves up, those of one point: the first leg of a pair."""
    return [single for single in singles if int((chosen - single).sum()) == 1]


def _costs(kept: Sequence[Tensor], choices: Tensor, cost: Cost) -> Tensor:
    amounts = torch.stack([curve[index] for curve, index in zip(kept, choices.T, strict=True)], dim=1)
    return cost(amounts.double())


def _losses(losses: Sequence[Tensor], choices: Tensor) -> Tensor:
    return torch.stack([curve[index] for curve, index in zip(losses, choices.T, strict=True)]).sum(0)
