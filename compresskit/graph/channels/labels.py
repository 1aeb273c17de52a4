"""Labels that stand for channels while a network is walked through: made, united and frozen."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Labels:
    """Numbers of channels. A label tensor has the shape of the activation, batch 1, and stride 0 where it repeats."""

    def __init__(self) -> None:
        self._count = 0
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, str]] = []

    def fresh(self, count: int) -> Tensor:
        """(count,) labels that nothing has yet."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Labels at the same place of two tensors of one shape are one channel from now on."""
        first, second = _without_repeats(first, second)
        self._edges.append((first.reshape(-1), second.reshape(-1)))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """These channels must stay."""
        (labels,) = _without_repeats(labels)
        chosen = torch.zeros(self._count, dtype=torch.bool)
        chosen[labels.reshape(-1)] = True
        self._frozen.append((chosen.nonzero(as_tuple=True)[0], reason))

    def atoms(self) -> Tensor:
        """(count,) number of the atom that each label belongs to, counted from 0 in the order of the labels."""
        parent = torch.arange(self._count)
        if self._edges:
            first, second = (torch.cat(ends) for ends in zip(*self._edges, strict=True))
            while not torch.equal(parent[first], parent[second]):
                low = torch.minimum(parent[first], parent[second])
                for end in (first, second):
                    parent = parent.scatter_reduce(0, parent[end], low, "amin")
                while not torch.equal(parent, parent[parent]):  # up to the roots
                    parent = parent[parent]
        return parent.unique(return_inverse=True)[1] if self._count else parent

    def frozen(self, atoms: Tensor) -> dict[int, str]:
        """The atoms that must stay, each with the first reason."""
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for atom in atoms[labels].unique().tolist():
                reasons.setdefault(atom, reason)
        return reasons


def compact(labels: Tensor) -> Tensor:
    """The labels with size 1 along each dimension in which they repeat."""
    for dim, size in enumerate(labels.shape):
        if size > 1 and repeats(labels, dim):
            labels = labels.narrow(dim, 0, 1)
    return labels


def repeats(labels: Tensor, dim: int) -> bool:
    """Whether the labels are the same all along `dim`."""
    if labels.stride(dim) == 0:
        return True
    (labels,) = _without_repeats(labels)
    return bool((labels == labels.narrow(dim, 0, 1)).all())


def along(labels: Tensor, dim: int) -> Tensor | None:
    """(size of dim,) the labels along `dim`, None where they differ along another one."""
    others = [d for d in range(labels.ndim) if d != dim % labels.ndim]
    if not all(labels.shape[d] == 1 or repeats(labels, d) for d in others):
        return None
    for d in reversed(others):
        labels = labels.select(d, 0)
    return labels


def spread(vector: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """Labels of `shape` that are `vector` along `dim` and repeat elsewhere."""
    view = [1] * len(shape)
    view[dim] = len(vector)
    return vector.view(view).expand(tuple(shape))


def unite_rows(labels: Labels, rows: Iterable[Tensor]) -> Tensor:
    """The labels of every row, position i of which is one channel from now on."""
    first: Tensor
    first, *others = rows if isinstance(rows, Tensor) else torch.broadcast_tensors(*rows)
    if others:
        labels.unite(first.expand(len(others), *first.shape), torch.stack(others))
    return first


def concatenated(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.cat of labels; where all of them repeat, so does the result, with nothing copied."""
    first, dim = tensors[0], dim % tensors[0].ndim
    common = [d for d in range(first.ndim) if d != dim and all(tensor.stride(d) == 0 for tensor in tensors)]
    narrow = list(tensors)
    for d in common:
        narrow = [tensor.narrow(d, 0, 1) for tensor in narrow]
    joined = torch.cat(narrow, dim)
    return joined.expand([first.shape[d] if d in common else size for d, size in enumerate(joined.shape)])


def broadcast(tensors: Sequence[Tensor]) -> torch.Size:
    """The shape that they have together."""
    shapes = {tensor.shape for tensor in tensors}  # torch's own function takes 0.1 ms to see that all are equal
    return shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)


def _without_repeats(*tensors: Tensor) -> list[Tensor]:
    """The tensors, all of one shape, narrowed along the dimensions in which none of them moves in memory."""
    found = list(tensors)
    for dim, size in enumerate(found[0].shape):
        if size > 1 and all(tensor.stride(dim) == 0 for tensor in found):
            found = [tensor.narrow(dim, 0, 1) for tensor in found]
    return found
