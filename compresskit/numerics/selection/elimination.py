"""Backward elimination: whole groups of inputs leave one at a time, each time the one whose loss is least."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.numerics.group_lasso.problem import Part, Problem

RIDGE = 1e-8  # of the mean diagonal of R, which may be singular: the inverse of its blocks has to exist
_WIDTH = 256  # columns of updates that are held back at most, but for one group with more


@dataclass(frozen=True)
class Elimination:
    """order: (n,) groups as they leave. errors: (n + 1,) E||y - M x||^2 over all parts after the first 0, 1, ... of
    them have left, M refitted on the rest. total: groups of the problem, of which some may have to stay."""

    order: Tensor
    errors: Tensor
    total: int

    def kept(self, count: int) -> Tensor:
        """(total,) bool: all groups but the first of those that leave, so that `count` are left."""
        mask = torch.ones(self.total, dtype=torch.bool, device=self.order.device)
        mask[self.order[: self.total - count]] = False
        return mask


def eliminate(problem: Problem, stay: Tensor | None = None) -> Elimination:
    """The order in which the groups of `problem` leave, down to none. stay: (n_groups,) bool, those that never do.

    With Q the inverse of R on the columns that are left and M = B Q their least squares, the loss of group g is
    tr(M_g Q_gg^-1 M_g^T), summed over the parts, when all others are fitted again; then Q and M become
    Q - Q_:g Q_gg^-1 Q_g: and M - M_g Q_gg^-1 Q_g: (Schur complements). That is the optimal brain surgeon (document 5.1)
    for groups of weights and with the layer's own quadratic loss, where it is exact. R has a ridge of 1e-8 of its mean
    diagonal, and where rounding made it indefinite by more than that, its eigenvalues count as the ridge at least;
    whenever half of the groups have left, Q is inverted anew.

    Operations, with n inputs and m outputs: n^3 for Q, 2/3 n^3 for its updates and 2 m n^2 for those of M and of the
    losses. The updates are held back and applied many at a time, as products of matrices: see `_State`.
    """
    device = problem.parts[0].cxx.device
    left = torch.ones(problem.n_groups, dtype=torch.bool, device=device)
    held = torch.zeros_like(left) if stay is None else stay.to(device)
    order: list[int] = []
    losses: list[Tensor] = []
    states: list[_State] = []
    fresh, start = 2 * problem.n_groups, 0.0
    for count in range(problem.n_groups, int(held.sum()), -1):
        if count <= fresh // 2:
            fresh = count
            states = [_State(part, left) for part in problem.parts if bool(left[part.groups].any())]
        if not order:
            start = problem.variance - sum(state.explained for state in states)
        loss = sum((state.losses() for state in states), torch.zeros_like(left, dtype=torch.float64))
        # read once: torch reads indices that are tensors
        leaving = int(loss.masked_fill(~left | held, torch.inf).argmin())
        order.append(leaving)
        losses.append(loss[leaving])
        left[leaving] = False
        for state in states:
            state.remove(leaving)
    gone = torch.cat([losses[0].new_zeros(1), torch.stack(losses).cumsum(0)])
    return Elimination(torch.tensor(order, device=device), (start + gone).clamp(min=0), problem.n_groups)


class _State:
    """Of one part: Q = inverse - F F^T and M = weight - H F^T, on the columns that were left when they were last made.

    Each removal appends its columns to the thin factors F and H, and only what the losses need is brought up to date at
    once: the diagonal blocks Q_gg and M_g^T M_g of all groups. When the factors are full, they are multiplied into
    `inverse` and `weight`, which lose the columns that are gone (as a blocked Cholesky decomposition delays its
    updates).

    columns: (n_groups, widest group) places of a group, and one past the end where it has fewer or is gone: there F is
    0. blocks: (n_groups, s, s) Q_gg, with 1 on the diagonal at such places. grams: M_g^T M_g, 0 at such places.
    factor, outputs: F^T and H^T, of which `done` rows count.
    """

    _blocks: Tensor
    _grams: Tensor
    _factor: Tensor
    _outputs: Tensor
    _done: int

    def __init__(self, part: Part, left: Tensor) -> None:
        (kept,) = left[part.groups].nonzero(as_tuple=True)
        cyx = part.cyx[:, kept]
        self._inverse = _inverse(part.cxx[kept[:, None], kept], _ridge(part.cxx))
        self._weight = cyx @ self._inverse
        self.explained = float((self._weight * cyx).sum())
        self._columns = _columns(part.groups[kept], len(left), len(kept))
        self._start()

    def losses(self) -> Tensor:
        """(n_groups,) tr(M_g Q_gg^-1 M_g^T); 0 for a group without columns."""
        if self._blocks.shape[1] == 1:
            return (self._grams / self._blocks)[:, 0, 0].clamp(min=0)
        roots = _inverse_roots(self._blocks)
        return (roots.mT @ self._grams @ roots).diagonal(dim1=1, dim2=2).sum(1).clamp(min=0)

    def remove(self, group: int) -> None:
        columns = self._columns[group]
        columns = columns[columns < len(self._inverse)]
        if self._done + len(columns) > len(self._factor):
            self._apply()
            columns = self._columns[group, : len(columns)]
        if len(columns) == 0:
            return
        factor, products = (rows.T[self._columns] for rows in self._append(group, columns))
        self._blocks.baddbmm_(factor, factor.mT, alpha=-1)
        cross = products @ factor.mT
        self._grams -= cross + cross.mT

    def _append(self, group: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(s, size + 1) f, the new rows of F^T, and p, so that Q loses f^T f and M^T M loses p^T f + f^T p.

        With h the new rows of H^T, M loses h^T f, and p = h M - h h^T f / 2. What F has of Q and M is subtracted from
        both in one product, for reading F takes longer than the operations do.
        """
        done, now = self._done, self._done + len(columns)
        root = _inverse_roots(self._blocks[group : group + 1])[0, : len(columns), : len(columns)].T
        old, old_outputs = self._factor[:done], self._outputs[:done]
        past = root @ old[:, columns].T
        outputs = root @ self._weight[:, columns].T - past @ old_outputs
        factor, products = (torch.cat([past, outputs @ old_outputs.T]) @ old).neg_().split(len(columns))
        factor[:, :-1].addmm_(root, self._inverse[columns])
        products[:, :-1].addmm_(outputs, self._weight)
        products.addmm_(outputs @ outputs.T, factor, alpha=-0.5)
        self._factor[done:now], self._outputs[done:now], self._done = factor, outputs, now
        self._columns[group] = len(self._inverse)
        self._blocks[group] = torch.eye(self._blocks.shape[1], dtype=root.dtype, device=root.device)
        self._grams[group] = 0
        return factor, products

    def _apply(self) -> None:
        """The factors, into the matrices, of which the columns that are left become the first ones."""
        size = len(self._inverse)
        present = torch.bincount(self._columns.flatten(), minlength=size + 1)[:size] > 0
        left = int(present.sum())
        (holes,), (late,) = (~present[:left]).nonzero(as_tuple=True), present[left:].nonzero(as_tuple=True)
        late = late + left
        self._inverse[holes] = self._inverse[late]
        self._inverse[:, holes] = self._inverse[:, late]
        self._weight[:, holes] = self._weight[:, late]
        self._factor[:, holes] = self._factor[:, late]
        factor, outputs = self._factor[: self._done, :left], self._outputs[: self._done]
        self._inverse = self._inverse[:left, :left].addmm_(factor.T, factor, alpha=-1)
        self._weight = self._weight[:, :left].addmm_(outputs.T, factor, alpha=-1)
        places = torch.arange(size + 1, device=present.device)
        places[late] = holes
        places[size] = left
        self._columns = places[self._columns]
        self._start()

    def _start(self) -> None:
        """Empty factors, and blocks from the matrices."""
        size, widest = len(self._inverse), self._columns.shape[1]
        width = max(widest, _WIDTH)
        self._done = 0
        self._factor = self._inverse.new_zeros(width, size + 1)
        self._outputs = self._inverse.new_zeros(width, len(self._weight))
        filled = self._columns < size
        place = self._columns.clamp(max=size - 1)
        weights = self._weight.T[place] * filled[:, :, None]
        self._grams = weights @ weights.mT
        pairs = filled[:, :, None] & filled[:, None, :]
        self._blocks = torch.where(pairs, self._inverse[place[:, :, None], place[:, None, :]], 0.0)
        self._blocks += torch.diag_embed((~filled).double())


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
    return _from_factor(factor)


def _from_factor(factor: Tensor) -> Tensor:
    """(L L^T)^-1, full. On the CPU by LAPACK itself: torch.cholesky_inverse takes as long again to fill the second
    triangle, going down columns."""
    if factor.device.type != "cpu":
        return torch.cholesky_inverse(factor)
    from scipy.linalg.lapack import dpotri  # a tenth of a second, which other verbs should not wait for

    triangle, _ = dpotri(factor.numpy(), lower=True, overwrite_c=True)
    half = torch.from_numpy(triangle).tril_()
    half.diagonal().mul_(0.5)
    return half + half.T


def _inverse_roots(blocks: Tensor) -> Tensor:
    """W with W W^T = blocks^-1, (n, s, s); updates may have left a block indefinite by rounding."""
    factor, failed = torch.linalg.cholesky_ex(blocks)
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(blocks)
        least = torch.finfo(values.dtype).eps * values[:, -1:].clamp(min=torch.finfo(values.dtype).tiny)
        roots: Tensor = vectors / values.maximum(least).sqrt()[:, None, :]
        return roots
    identity = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
    found: Tensor = torch.linalg.solve_triangular(factor.mT, identity.expand_as(blocks), upper=True)
    return found


def _columns(groups: Tensor, n_groups: int, empty: int) -> Tensor:
    """(n_groups, widest) columns of each group, filled up with `empty`."""
    counts = torch.bincount(groups, minlength=n_groups)
    order = groups.argsort(stable=True)
    rank = torch.arange(len(groups), device=groups.device) - (counts.cumsum(0) - counts)[groups[order]]
    table = torch.full((n_groups, max(int(counts.max()), 1)), empty, device=groups.device)
    table[groups[order], rank] = order
    return table
