"""Elimination and allocation with everything updated, or computed again, at each step: references, and what the bench
compares with."""

import torch

from compresskit.numerics.selection.elimination import RIDGE


def eliminate(problem):
    """(order, losses): Q - Q_:g Q_gg^-1 Q_g: and M - M_g Q_gg^-1 Q_g: of whole matrices for every removal."""
    states = []
    for part in problem.parts:
        shifted = part.cxx + RIDGE * part.cxx.diagonal().mean() * torch.eye(len(part.cxx), dtype=part.cxx.dtype)
        inverse = torch.linalg.inv(shifted)
        columns = [(part.groups == group).nonzero()[:, 0] for group in range(problem.n_groups)]
        states.append([inverse, part.cyx @ inverse, columns])
    left, order, losses = list(range(problem.n_groups)), [], []
    while left:
        found = torch.stack([_losses(*state)[left] for state in states]).sum(0)
        losses.append(float(found.min()))
        order.append(left.pop(int(found.argmin())))
        for state in states:
            inverse, weight, columns = state
            gone = columns[order[-1]]
            solved = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
            state[1] = weight - weight[:, gone] @ solved
            state[0] = inverse - inverse[:, gone] @ solved
    return order, losses


def _losses(inverse, weight, columns):
    """tr(M_g Q_gg^-1 M_g^T)"""
    if all(len(own) == len(columns[0]) for own in columns):
        places = torch.stack(columns)
        factor = torch.linalg.cholesky_ex(inverse[places[:, :, None], places[:, None, :]]).L
        return torch.linalg.solve_triangular(factor, weight.T[places], upper=False).square().sum((1, 2))
    return torch.stack([_loss(inverse[own][:, own], weight[:, own]) for own in columns])


def _loss(block, weight):
    """0 of no column; of one that is gone it does not matter."""
    return (weight.T * torch.linalg.lstsq(block, weight.T).solution).sum() if len(block) else block.new_zeros(())


def allocate(kept, losses, cost, limit):
    """By a cost that is any function of amounts (m, n), computed again for all moves at each step."""
    last = torch.tensor([len(amounts) - 1 for amounts in kept])
    starts = [_greedy(last, kept, losses, cost, limit, overshoot) for overshoot in (False, True)]
    found = [_polished(start, last, kept, losses, cost, limit) for start in starts]
    return min(found, key=lambda chosen: float(_total(losses, chosen[None]))).tolist()


def _greedy(last, kept, losses, cost, limit, overshoot):
    chosen = torch.zeros_like(last)
    while (now := float(_costs(kept, chosen[None], cost))) > limit * (1 + 1e-12):
        moves = _moves(chosen, last, down=True)
        saved = now - _costs(kept, moves, cost)
        useful = saved if overshoot else saved.clamp(max=now - limit)
        added = _total(losses, moves) - _total(losses, chosen[None])
        chosen = moves[int(torch.where(useful > 0, added / useful.clamp(min=1e-300), torch.inf).argmin())]
    return chosen


def _polished(chosen, last, kept, losses, cost, limit):
    now = float(_total(losses, chosen[None]))
    while True:
        singles = _moves(chosen, last, down=False)
        pairs = [_moves(move, last, down=True) for move in singles if int((chosen - move).sum()) == 1]
        moves = torch.cat([chosen[None], singles, *pairs])
        fits = _costs(kept, moves, cost) <= limit * (1 + 1e-12)
        loss = torch.where(fits, _total(losses, moves), torch.inf)
        best = int(loss.argmin())
        if not loss[best] < now - 1e-12 * abs(now):
            return chosen
        chosen, now = moves[best], float(loss[best])


def _moves(chosen, last, *, down):
    found = []
    for curve, index in enumerate(chosen.tolist()):
        points = range(index + 1, int(last[curve]) + 1) if down else range(index)
        moved = chosen.repeat(len(points), 1)
        moved[:, curve] = torch.tensor(points)
        found.append(moved)
    return torch.cat(found)


def _costs(kept, choices, cost):
    return cost(torch.stack([curve[index] for curve, index in zip(kept, choices.T, strict=True)], dim=1).double())


def _total(losses, choices):
    return torch.stack([curve[index] for curve, index in zip(losses, choices.T, strict=True)]).sum(0)
