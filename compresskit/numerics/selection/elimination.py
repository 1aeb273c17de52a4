"""Backward elimination: whole groups of inputs leave one at a time, each time the one whose loss is least."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.numerics.group_lasso.problem import Part, Problem

RIDGE = 1e-8  # of the mean diagonal of R, which may be singular: the inverse of its blocks has to exist


@dataclass(frozen=True)
class Elimination:
    """order: (n_groups,) groups as they leave. errors: (n_groups + 1,) E||y - M x||^2 over all parts after the first
    0, 1, ... of them have left, M refitted on the rest."""

    order: Tensor
    errors: Tensor

    def kept(self, count: int) -> Tensor:
        """(n_groups,) bool: the `count` groups that leave last."""
        mask = torch.zeros(len(self.order), dtype=torch.bool, device=self.order.device)
        mask[self.order[len(self.order) - count :]] = True
        return mask


def eliminate(problem: Problem) -> Elimination:
    """The order in which the groups of `problem` leave, down to none.

    With Q the inverse of R on the columns that are left and M = B Q their least squares, the loss of group g is
    tr(M_g Q_gg^-1 M_g^T), summed over the parts, when all others are fitted again; then Q and M become
    Q - Q_:g Q_gg^-1 Q_g: and M - M_g Q_gg^-1 Q_g: (Schur complements). That is the optimal brain surgeon (document 5.1)
    for groups of weights and with the layer's own quadratic loss, where it is exact. O(in^2 (in + out)) for the whole
    order. R has a ridge of 1e-8 of its mean diagonal, and where rounding made it indefinite by more than that, its
    eigenvalues count as the ridge at least; whenever half of the groups have left, Q is inverted anew.
    """
    device = problem.parts[0].cxx.device
    left = torch.ones(problem.n_groups, dtype=torch.bool, device=device)
    order: list[Tensor] = []
    losses: list[Tensor] = []
    states: list[_State] = []
    fresh, start = 2 * problem.n_groups, 0.0
    for count in range(problem.n_groups, 0, -1):
        if count <= fresh // 2:
            fresh = count
            states = [_State(part, left) for part in problem.parts]
        if not order:
            start = problem.variance - sum(state.explained for state in states)
        loss = torch.stack([state.losses() for state in states]).sum(0)
        leaving = loss.masked_fill(~left, torch.inf).argmin()
        order.append(leaving)
        losses.append(loss[leaving])
        left[leaving] = False
        for state in states:
            state.remove(leaving)
    gone = torch.cat([losses[0].new_zeros(1), torch.stack(losses).cumsum(0)])
    return Elimination(torch.stack(order), (start + gone).clamp(min=0))


class _State:
    """Of one part: `inverse` Q and `weight` M on the columns that were left when it was made, 0 in those gone since.

    columns: (n_groups, widest group) places in these, and one past the end where a group has fewer: there Q has an
    extra row and column of 0 but for a 1 in the corner, and M a column of 0.
    """

    def __init__(self, part: Part, left: Tensor) -> None:
        (kept,) = left[part.groups].nonzero(as_tuple=True)
        gram = part.cxx[kept][:, kept]
        size = len(kept)
        cyx = part.cyx[:, kept]
        self.inverse = torch.zeros(size + 1, size + 1, dtype=gram.dtype, device=gram.device)
        self.inverse[:size, :size] = _inverse(gram, _ridge(part.cxx))
        self.weight = torch.cat([cyx @ self.inverse[:size, :size], cyx.new_zeros(len(cyx), 1)], dim=1)
        self.explained = float((self.weight[:, :size] * cyx).sum())
        self.columns = _columns(part.groups[kept], len(left), size)
        self._padding = (self.columns == size).double()
        self._single = self.columns.shape[1] == 1

    def losses(self) -> Tensor:
        """(n_groups,) tr(M_g Q_gg^-1 M_g^T); 0 for a group without columns."""
        if self._single:
            place = self.columns[:, 0]
            squares = self.weight.square().sum(0)[place]
            return squares / torch.where(squares > 0, self.inverse.diagonal()[place], 1.0)
        half = _whitened(self._blocks(), self.weight.T[self.columns])
        return half.square().sum((1, 2))

    def remove(self, group: Tensor) -> None:
        columns = self.columns[group]
        columns = columns[columns < len(self.inverse) - 1]
        if len(columns) == 0:
            return
        rows = self.inverse[columns]
        solved = torch.linalg.solve(rows[:, columns], rows)
        self.weight -= self.weight[:, columns] @ solved
        self.inverse -= rows.T @ solved
        self.weight[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0
        self.columns[group] = len(self.inverse) - 1
        self._padding[group] = 1

    def _blocks(self) -> Tensor:
        """(n_groups, s, s) Q_gg, with 1 on the diagonal where there is no column."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        return blocks + torch.diag_embed(self._padding)


def _ridge(cxx: Tensor) -> float:
    """Above 0 also where no input varies."""
    mean = float(cxx.diagonal().mean())
    return RIDGE * mean if mean > 0 else 1.0


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    """(gram + ridge)^-1 of a symmetric matrix that is positive semidefinite but for rounding."""
    shifted = gram.clone()
    shifted.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed):
        values, vectors = torch.linalg.eigh(gram)
        inverse: Tensor = vectors / values.clamp(min=ridge) @ vectors.T
        return inverse
    return torch.cholesky_inverse(factor)


def _whitened(blocks: Tensor, weights: Tensor) -> Tensor:
    """L^-1 weights with L L^T = blocks, (n, s, s), which updates may have left indefinite by rounding."""
    factor, failed = torch.linalg.cholesky_ex(blocks)
    found: Tensor
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(blocks)
        least = torch.finfo(values.dtype).eps * values[:, -1:]
        found = vectors.mT @ weights / values.clamp(min=least).sqrt()[:, :, None]
    else:
        found = torch.linalg.solve_triangular(factor, weights, upper=False)
    return found


def _columns(groups: Tensor, n_groups: int, empty: int) -> Tensor:
    """(n_groups, widest) columns of each group, filled up with `empty`."""
    counts = torch.bincount(groups, minlength=n_groups)
    order = groups.argsort(stable=True)
    rank = torch.arange(len(groups), device=groups.device) - (counts.cumsum(0) - counts)[groups[order]]
    table = torch.full((n_groups, max(int(counts.max()), 1)), empty, device=groups.device)
    table[groups[order], rank] = order
    return table
