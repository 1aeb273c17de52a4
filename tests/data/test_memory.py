import pytest
import torch

from compresskit.data.augmentation.augment import Augment
from compresskit.data.memory import Examples, InMemory, MemorySplit, assemble
from compresskit.data.stored.normalization import Normalization, identity
from compresskit.errors import DataError

CPU = torch.device("cpu")


def examples(count=40, first=0):
    """Images that name themselves: every pixel of image i is i + 1; label i mod 4."""
    numbers = torch.arange(first, first + count)
    inputs = (numbers + 1).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 6, 6).contiguous()
    return Examples(inputs, numbers % 4)


def split(augment=None, count=40):
    return MemorySplit(examples(count), identity(2), augment)


def numbers(batches):
    """The image numbers of each batch, read from the centre pixel, which a shift of 2 cannot reach."""
    return [(inputs[:, 0, 3, 3] * 255 - 1).round().int().tolist() for inputs, _ in batches]


def served(split, **options):
    batches = list(split.batches(8, CPU, **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def assembled(**options):
    return assemble(
        InMemory(kind="any", **options), examples(40), examples(10, 100), task="classification", outputs=4, seed=0
    )


def test_without_a_seed_the_stored_order_is_served_unchanged():
    inputs, targets = served(split(Augment(flip=True, crop=2)))
    stored = examples()
    torch.testing.assert_close(inputs, stored.inputs / 255)
    assert torch.equal(targets, stored.targets)


def test_a_seed_shuffles_and_keeps_targets_with_their_inputs():
    found = numbers(split(Augment(flip=True, crop=2)).batches(8, CPU, seed=0))
    flat = sum(found, [])
    assert sorted(flat) == list(range(40))
    assert flat != list(range(40))
    inputs, targets = served(split(), seed=0)
    assert torch.equal((inputs[:, 0, 0, 0] * 255 - 1).round().long() % 4, targets)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    augmented = split(Augment(flip=True, crop=2))
    assert torch.equal(served(augmented, seed=3)[0], served(augmented, seed=3)[0])
    assert not torch.equal(served(augmented, seed=3)[0], served(augmented, seed=4)[0])


def test_padding_is_black_before_normalisation():
    bright = MemorySplit(examples(), Normalization((0.5, 0.5), (0.25, 0.25)), Augment(crop=2))
    inputs, _ = served(bright, seed=0)
    assert inputs.min().item() == pytest.approx((0 - 0.5) / 0.25)


@pytest.mark.parametrize("seed", [None, 5])
def test_ranks_side_by_side_are_the_whole(seed):
    augmented = split(Augment(flip=True, crop=2))
    whole = list(augmented.batches(8, CPU, seed=seed))
    ranks = [list(augmented.batches(8, CPU, seed=seed, rank=rank, world=2)) for rank in (0, 1)]
    assert len(whole) == len(ranks[0]) == len(ranks[1])
    for both, left, right in zip(whole, *ranks, strict=True):
        assert torch.equal(both[0], torch.cat([left[0], right[0]]))
        assert torch.equal(both[1], torch.cat([left[1], right[1]]))


def test_start_goes_on_where_an_epoch_stopped():
    augmented = split(Augment(flip=True, crop=2))
    whole = list(augmented.batches(8, CPU, seed=2))
    rest = list(augmented.batches(8, CPU, seed=2, start=3))
    assert len(rest) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], rest, strict=True))


def test_drop_last_cuts_the_order_served():
    uneven = split(count=19)
    assert [len(batch) for batch in numbers(uneven.batches(8, CPU, seed=0))] == [8, 8, 3]
    whole = sum(numbers(uneven.batches(8, CPU, seed=0)), [])
    assert sum(numbers(uneven.batches(8, CPU, seed=0, drop_last=True)), []) == whole[:16]


def test_a_sample_is_a_fixed_random_subset_without_augmentation():
    whole = split(Augment(flip=True, crop=2))
    sample = whole.sample(19)
    chosen = sum(numbers(sample.batches(8, CPU)), [])
    assert len(sample) == len(set(chosen)) == 19
    assert chosen == sorted(chosen) != list(range(19))
    assert sum(numbers(whole.sample(19).batches(8, CPU)), []) == chosen
    assert sum(numbers(whole.sample(100).batches(8, CPU)), []) == list(range(40))
    assert sample.fingerprint != whole.fingerprint
    bright = served(whole.sample(40), seed=0)[0]
    assert bright.min() > 0  # black only where a crop reached outside


def test_assemble_holds_out_a_fixed_validation_part():
    data = assembled(validation=10, normalize="none")
    parts = (data.train, data.validation, data.test)
    train, validation, test = (sum(numbers(part.batches(8, CPU)), []) for part in parts)
    assert (len(train), len(validation)) == (30, 10)
    assert sorted(train + validation) == list(range(40))
    assert test == list(range(100, 110))
    assert assembled(validation=10, normalize="none").fingerprint == data.fingerprint


def test_only_the_training_part_is_augmented():
    data = assembled(validation=10, normalize="none", augment=Augment(crop=2))
    assert served(data.train, seed=0)[0].min() == 0
    assert served(data.validation, seed=0)[0].min() > 0
    assert served(data.test, seed=0)[0].min() > 0


def test_label_noise_stays_in_the_training_part():
    clean, noisy = assembled(validation=10), assembled(validation=10, label_noise=0.9)
    assert not torch.equal(served(clean.train)[1], served(noisy.train)[1])
    assert torch.equal(served(clean.train)[0], served(noisy.train)[0])
    for part in ("validation", "test"):
        assert torch.equal(served(getattr(clean, part))[1], served(getattr(noisy, part))[1])


def test_limit_measures_and_serves_the_subset_alone():
    data = assembled(limit=7)
    assert (len(data.train), len(data.test)) == (7, 10)
    inputs, _ = served(data.train)
    # float32
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)


def test_fingerprints_tell_apart_what_is_served():
    changes = [{"validation": 10}, {"limit": 7}, {"label_noise": 0.5}, {"normalize": "none"}]
    variants = [{}, *changes, {"augment": Augment(crop=1)}]
    sets = [assembled(**options) for options in variants]
    assert len({data.fingerprint for data in sets}) == len(sets)
    assert len({data.train.fingerprint for data in sets}) == len(sets)
    assert sets[0].train.fingerprint != sets[0].test.fingerprint
    assert sets[0].test.fingerprint == assembled(label_noise=0.5).test.fingerprint


def test_label_noise_is_refused_for_regression():
    part = Examples(torch.randn(5, 2), torch.randn(5, 1))
    with pytest.raises(DataError, match=r"data\.label_noise: 0\.1 needs classes, but the task is regression"):
        assemble(InMemory(kind="any", label_noise=0.1), part, part, task="regression", outputs=1, seed=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 8), r"inputs of shape \(8,\) are no images"), ((5, 1, 3, 9), r"crop: 3 shifts images of shape \(1, 3, 9\)")],
)
def test_augment_is_refused_where_it_makes_no_sense(shape, message):
    part = Examples(torch.randn(shape), torch.zeros(5, dtype=torch.long))
    with pytest.raises(DataError, match=message):
        assemble(InMemory(kind="any", augment=Augment(crop=3)), part, part, task="classification", outputs=2, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_holds_the_set_and_serves_the_same():
    augmented = split(Augment(flip=True, crop=2))
    cuda = torch.device("cuda", 0)
    for (x, y), (on_x, on_y) in zip(augmented.batches(8, CPU, seed=1), augmented.batches(8, cuda, seed=1), strict=True):
        assert on_x.device == on_y.device == cuda
        torch.testing.assert_close(on_x.cpu(), x)
        assert torch.equal(on_y.cpu(), y)


def test_a_full_gpu_leaves_the_set_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    stored = split()
    assert stored._near(torch.device("cuda", 0)).inputs.device == CPU
