"""Blocks are found in masks however these are ordered; what has none is told apart in tests/passes/test_group.py."""

import pytest
import torch

from compresskit.numerics.sparse.block_diagonal import find_blocks
from tests.sparse import block_mask, scattered


@pytest.mark.parametrize(("outputs", "inputs", "degree"), [(16, 16, 4), (24, 16, 2), (6, 12, 4), (5, 10, 2), (3, 4, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_a_mask_in_any_order_give_it_back(outputs, inputs, degree, seed):
    mask = scattered(block_mask(outputs, inputs, degree), seed)
    blocks = find_blocks(mask)
    assert torch.equal(blocks.mask(), mask)
    assert blocks.degrees == (outputs * degree // inputs, degree)
    assert bool((blocks.rows.diff(dim=1) > 0).all())
    assert bool((blocks.columns.diff(dim=1) > 0).all())


def test_one_side_stays_in_order_where_it_can():
    mask = block_mask(12, 12, 3)
    assert torch.equal(find_blocks(mask).columns.flatten(), torch.arange(12))
    columns = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(find_blocks(mask.t()[:, columns]).rows.flatten(), torch.arange(12))
