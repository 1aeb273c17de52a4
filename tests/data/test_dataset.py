import pytest
import torch

from compresskit.data.dataset import AnySet, corrupt, digest, generator, partition, shares
from compresskit.errors import DataError


def test_partition_is_disjoint_complete_and_in_stored_order():
    kept, held = partition(50, AnySet(kind="any", validation=12))
    assert len(held) == 12
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(50))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_partition_depends_on_split_seed_alone():
    first, again = (partition(50, AnySet(kind="any", validation=12))[1] for _ in range(2))
    other = partition(50, AnySet(kind="any", validation=12, split_seed=1))[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_limit_leaves_validation_alone_and_nests():
    small, large = (partition(50, AnySet(kind="any", validation=12, limit=limit)) for limit in (5, 20))
    assert torch.equal(small[1], large[1])
    assert len(small[0]) == 5
    assert set(small[0].tolist()) < set(large[0].tolist())


@pytest.mark.parametrize("options", [{"validation": 50}, {"validation": 45, "limit": 6}, {"limit": 51}])
def test_partition_refuses_more_than_there_is(options):
    with pytest.raises(DataError, match=r"the training part holds 50 samples, too few .*lower data\.validation"):
        partition(50, AnySet(kind="any", **options))


def test_corrupt_replaces_the_stated_number_by_draws_from_all_classes():
    labels = torch.full((20_000,), 3)
    noisy = corrupt(labels, 0.2, 10, seed=0)
    assert torch.equal(labels, torch.full((20_000,), 3))
    # 4,000 draws from 10 classes keep the true one 400 times, with a standard deviation of 19
    assert (noisy != 3).sum().item() == pytest.approx(3600, abs=80)
    counts = noisy.bincount(minlength=10)
    assert counts[[0, 1, 2, 4, 5, 6, 7, 8, 9]].tolist() == pytest.approx([400] * 9, abs=80)


def test_corrupt_touches_no_more_than_the_stated_number():
    noisy = corrupt(torch.full((1000,), -1), 0.25, 10, seed=0)
    assert (noisy >= 0).sum() == 250


def test_corrupt_is_drawn_by_seed():
    labels = torch.zeros(100, dtype=torch.long)
    assert torch.equal(corrupt(labels, 0.5, 10, seed=1), corrupt(labels, 0.5, 10, seed=1))
    assert not torch.equal(corrupt(labels, 0.5, 10, seed=1), corrupt(labels, 0.5, 10, seed=2))


def test_noisy_labels_are_spread_over_an_epoch_of_the_same_seed():
    noisy = corrupt(torch.full((1000,), -1), 0.2, 10, seed=0) >= 0
    order = torch.randperm(1000, generator=generator("epoch", 0))
    assert noisy[order[:200]].sum().item() == pytest.approx(40, abs=25)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_all_ranks_make_up_each_global_batch(world, drop_last):
    positions = list(range(25))
    per_rank = [[positions[s] for s in shares(25, 8, rank, world, drop_last, 1)] for rank in range(world)]
    batches = [positions[8:16], positions[16:24]] + ([] if drop_last else [positions[24:]])
    joined = [[] for _ in batches]
    for rank in per_rank:
        # only a last batch smaller than the world has ranks without a share
        for batch, share in zip(joined, rank if len(rank) == len(batches) else [*rank, []], strict=True):
            batch.extend(share)
    assert joined == batches


def test_digest_tells_values_types_and_shapes_apart():
    zeros = torch.zeros(4)
    parts = [zeros, zeros.view(2, 2), zeros.int(), torch.tensor([0.0, 0, 0, 1]), "zeros", None]
    assert len({digest(part) for part in parts}) == len(parts)
    assert digest(torch.arange(6).view(2, 3).t()) == digest(torch.arange(6).view(2, 3).t().contiguous())
