"""Balanced factors: the same product, the least norm, and the laws that say so."""

import pytest
import torch

from compresskit.numerics.expansion.balance import balanced
from compresskit.numerics.expansion.composition import contract


def kernels(*shapes: tuple[int, ...], spread: float = 1.0) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [
        spread ** (-1) ** number * torch.randn(*shape, generator=draws, dtype=torch.float64)
        for number, shape in enumerate(shapes)
    ]


def product(factors: list[torch.Tensor]) -> torch.Tensor:
    return contract(factors, [None] * len(factors))[0]


def norms(factors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([factor.norm() for factor in factors])


NARROW = {
    "matrices": ((1, 3, 8), (1, 6, 3)),
    "three matrices": ((1, 4, 9), (1, 4, 4), (1, 7, 4)),
    "convolutions": ((1, 3, 3, 3, 2), (1, 5, 3, 3, 3)),
    "groups": ((2, 2, 3, 1, 4), (2, 3, 1, 3, 2)),
}
WIDE = {
    "image of one channel": ((1, 1, 1, 1, 1), (1, 8, 3, 3, 1), (1, 6, 1, 1, 8)),
    "wider than the input": ((1, 16, 1, 1, 4), (1, 24, 3, 3, 16), (1, 6, 1, 1, 24)),
}


@pytest.mark.parametrize("shapes", [*NARROW.values(), *WIDE.values()], ids=[*NARROW, *WIDE])
@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_the_product_stays_and_the_norms_become_equal_and_least(shapes, spread):
    start = kernels(*shapes, spread=spread)
    found = balanced(start)
    torch.testing.assert_close(product(found), product(start), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms(found), norms(found).mean().expand(len(found)), rtol=1e-6, atol=0)
    assert norms(found).square().sum() <= norms(start).square().sum() * (1 + 1e-12)


@pytest.mark.parametrize("shapes", NARROW.values(), ids=NARROW)
def test_neighbours_are_balanced_where_shapes_allow(shapes):
    found = balanced(kernels(*shapes, spread=30.0))
    for first, second in zip(found, found[1:], strict=False):
        rows, columns = first.flatten(2), second.flatten(1, -2)
        torch.testing.assert_close(rows @ rows.mT, columns.mT @ columns, rtol=1e-6, atol=1e-9)


def test_no_other_basis_has_a_smaller_norm():
    start = kernels((1, 3, 8), (1, 6, 3))
    least = norms(balanced(start)).square().sum()
    draws = torch.Generator().manual_seed(1)
    for _ in range(200):
        other = torch.randn(3, 3, generator=draws, dtype=torch.float64)
        changed = [other @ start[0], start[1] @ torch.linalg.inv(other)]
        assert norms(changed).square().sum() >= least * (1 - 1e-9)


def test_factors_of_zeros_stay_what_they_are():
    start = [torch.zeros(1, 2, 3, dtype=torch.float64), torch.ones(1, 4, 2, dtype=torch.float64)]
    found = balanced(start)
    assert torch.equal(found[0], start[0])
    assert torch.equal(found[1], start[1])
