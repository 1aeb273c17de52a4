"""Masks of sparse layers: every input feeds c outputs, every output sees d inputs; and what to fill them with.

The document makes the mask of (outputs m, inputs n) of copies of one block: for m < n the (n / d, n) matrix whose row
i has ones at the inputs i d to (i + 1) d - 1, copied m d / n times one below the other; for m > n the same of the
transpose; for m = n it leaves the choice, and here it is the transpose, too. Up to the order of inputs and outputs it
is block-diagonal, with g = n / d = m / c blocks of c x d ones.
Source: SAO, sections IV-A and IV-C.
"""

from dataclasses import dataclass
from math import gcd, sqrt
from typing import Literal

import torch
from torch import Tensor

Arrangement = Literal["shuffle", "random"]


@dataclass(frozen=True)
class Blocks:
    """Which rows and columns of a matrix make up its blocks. rows: (blocks, c). columns: (blocks, d)."""

    rows: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.numel(), self.columns.numel()

    @property
    def degrees(self) -> tuple[int, int]:
        """(c, d): outputs that an input feeds, inputs that an output sees."""
        return self.rows.shape[1], self.columns.shape[1]

    def mask(self) -> Tensor:
        """(m, n) bool, True inside of blocks."""
        return self.filled(torch.ones(len(self.rows), *self.degrees, dtype=torch.bool))

    def doubled(self, *, columns: bool) -> "Blocks":
        """Of (2m, n), in each half the same blocks, c is twice as much; or of (2m, 2n), and d is, too."""
        m, n = self.shape
        both = torch.cat([self.columns, self.columns + n], 1) if columns else self.columns
        return Blocks(torch.cat([self.rows, self.rows + m], 1), both)

    def filled(self, values: Tensor) -> Tensor:
        """(m, n) matrix with values (blocks, c, d) in its blocks and zeros elsewhere.

        With an orthogonal matrix in each block it is orthogonal: its singular values are those of its blocks.
        """
        matrix = values.new_zeros(self.shape)
        matrix[self.rows[:, :, None], self.columns[:, None, :]] = values
        return matrix


def blocks(outputs: int, inputs: int, number: int, arrangement: Arrangement, generator: torch.Generator) -> Blocks:
    """The document's blocks, `number` of them, a common divisor of both sides.

    shuffle: as above, so that the outputs of a block are read by different blocks of the next layer: all of n inputs
    reach all outputs through ceil(log_d n) layers of n x n, and through fewer they cannot.
    random: rows and columns in random order, which needs a few layers more.
    """
    in_order = torch.arange(outputs).view(number, -1), torch.arange(inputs).view(number, -1)
    if arrangement == "random":
        rows, columns = (torch.randperm(side.numel(), generator=generator).view(side.shape) for side in in_order)
        return Blocks(rows, columns)
    if outputs < inputs:
        return Blocks(torch.arange(outputs).view(-1, number).T, in_order[1])
    return Blocks(in_order[0], torch.arange(inputs).view(-1, number).T)


def of_degree(outputs: int, inputs: int, degree: int) -> int:
    """Number of blocks if each node of the shorter side has `degree` neighbours.

    Raises ValueError if the longer side is no multiple of the degree, or if a node of the longer side would have a
    number of neighbours that is not whole, or none.
    """
    longer, shorter = max(outputs, inputs), min(outputs, inputs)
    if longer % degree:
        raise ValueError(f"degree {degree} does not divide {longer}, the longer side; {_possible(outputs, inputs)}")
    number = longer // degree
    if shorter % number:
        raise ValueError(
            f"with degree {degree} a node of the longer side, {longer}, would have {shorter} / {number} neighbours, "
            f"which is no whole number; {_possible(outputs, inputs)}"
        )
    return number


def of_density(outputs: int, inputs: int, density: float) -> int:
    """Number of blocks if this share of the weights is kept, to nine digits.

    Raises ValueError if 1 / density is no common divisor of both sides, with the densities near by.
    """
    number = round(1 / density)
    common = gcd(outputs, inputs)
    if abs(number * density - 1) > 1e-9 or common % number:
        near = sorted(divisors(common), key=lambda g: abs(1 / g - density))[:3]
        raise ValueError(
            f"a density of {density:.6g} (sparsity {1 - density:.6g}) cannot be had; the nearest are "
            + ", ".join(f"{1 / g:.8g} (sparsity {1 - 1 / g:.8g})" for g in near)
        )
    return number


def nearest(outputs: int, inputs: int, density: float) -> int:
    """Number of blocks whose density comes nearest to this one; of two as near, to nine digits, the greater number.

    Densities of such masks are 1 / g for the common divisors g of both sides.
    """
    return min(reversed(divisors(gcd(outputs, inputs))), key=lambda g: round(abs(1 / g - density), 9))


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _possible(outputs: int, inputs: int) -> str:
    longer = max(outputs, inputs)
    return f"possible are {', '.join(str(longer // g) for g in reversed(divisors(gcd(outputs, inputs))))}"


@dataclass(frozen=True)
class Expansion:
    """Eigenvalues of the graph of a mask, whose adjacency matrix is [[0, M], [M^T, 0]].

    first: the largest one, sqrt(c d). components: how often it comes, which is the number of connected parts.
    second: the largest of the others. bound: sqrt(c - 1) + sqrt(d - 1), which a Ramanujan graph's second one keeps.
    """

    first: float
    components: int
    second: float
    bound: float

    @property
    def is_ramanujan(self) -> bool:
        """As the document means it: by the second of the distinct eigenvalues.

        Counted with its multiplicity the second one of a graph in several parts is the first once more, and
        a single layer is no expander: what connects all of its nodes are the layers behind it.
        """
        return self.second <= self.bound * (1 + 1e-9)


@dataclass(frozen=True)
class Graph:
    """Of a mask. sides: (m, n) outputs and inputs.

    degrees: (c, d), means of the outputs that an input feeds and of the inputs that an output sees.
    eigenvalues: (m + n,) float64, the largest first. regular: whether all of a side have the same degree.
    """

    sides: tuple[int, int]
    degrees: tuple[float, float]
    eigenvalues: Tensor
    regular: bool

    @property
    def kept(self) -> float:
        """Share of all edges that there could be."""
        return self.degrees[0] / self.sides[0]

    @property
    def expansion(self) -> Expansion:
        """With the means as degrees where it is not regular; its largest eigenvalue comes once then."""
        first, tolerance = float(self.eigenvalues[0]), 1e-9 * float(self.eigenvalues[0])
        others = self.eigenvalues[self.eigenvalues < first - tolerance]
        second = max(0.0, float(others[0])) if len(others) else 0.0
        bound = sum(sqrt(max(degree - 1, 0)) for degree in self.degrees)
        return Expansion(first, int((self.eigenvalues >= first - tolerance).sum()), second, bound)


def graph(mask: Tensor) -> Graph:
    """Of a mask (outputs, inputs) bool: eigenvalues are the singular values of the mask, their negatives, and |m - n|
    zeros. Source: SAO, equation (7), section V-A and Figure 7.
    """
    seen, fed = mask.sum(1), mask.sum(0)
    values = torch.linalg.svdvals(mask.double())
    eigenvalues = torch.cat([values, values.new_zeros(abs(mask.shape[0] - mask.shape[1])), -values.flip(0)])
    regular = len(seen.unique()) == 1 and len(fed.unique()) == 1
    degrees = float(fed.double().mean()), float(seen.double().mean())
    return Graph((mask.shape[0], mask.shape[1]), degrees, eigenvalues, regular)


def expansion(mask: Tensor) -> Expansion:
    """Of a mask (outputs, inputs) whose rows have d ones each and whose columns c.

    Raises ValueError for a mask that is not so regular. Source: SAO, equation (7) and section IV-A.
    """
    found = graph(mask)
    if not found.regular:
        raise ValueError("the mask is not regular: its rows, or its columns, differ in what they keep")
    return found.expansion
