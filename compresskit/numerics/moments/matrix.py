"""Symmetric matrices that may be too large to hold twice: a tensor, or rows that are read when they are needed."""

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """A symmetric matrix (in, in), float64, that need not lie in memory as a whole: `cg` multiplies and never reads."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __matmul__(self, other: Tensor) -> Tensor: ...

    def diagonal(self) -> Tensor: ...

    def read(self) -> Tensor: ...


Matrix = Tensor | Rows


def dense(matrix: Matrix) -> Tensor:
    """The matrix (in, in) as a tensor, read into memory where it is not there yet."""
    return matrix if isinstance(matrix, Tensor) else matrix.read()
