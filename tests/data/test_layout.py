"""Channels last: the same values, of the same samples, in another order in memory."""

from dataclasses import replace

import pytest
import torch

from compresskit.data.augmentation.augment import Augment
from compresskit.data.dataset import AnySet
from compresskit.data.layout import ChannelsLast, load_set
from compresskit.data.memory import Examples, InMemory, MemorySplit, assemble
from compresskit.data.stored.normalization import identity
from compresskit.errors import RecipeError

CPU = torch.device("cpu")


class Made(AnySet):
    """Random inputs of a shape."""

    shape = (3, 6, 5)

    def load(self, seed):
        train, test = (Examples(torch.rand(n, *self.shape), torch.arange(n) % 4) for n in (40, 10))
        return assemble(InMemory(kind="any", validation=8), train, test, task="classification", outputs=4, seed=seed)


def made(shape, **options):
    source = Made(kind="made", **options)
    object.__setattr__(source, "shape", shape)
    return source


def in_layout(tensor):
    """Whether the channels of a position lie side by side."""
    return tensor.stride(1) == 1 and sorted(tensor.stride())[-1] == tensor.stride(0)


def batches(split, **how):
    return list(split.batches(16, CPU, **how))


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 6, 5), (2, 3, 4, 5)], ids=str)
def test_batches_of_all_parts_have_the_same_values_in_that_layout(shape):
    torch.manual_seed(0)
    plain = load_set(made(shape), 0)
    torch.manual_seed(0)
    found = load_set(made(shape, channels_last=True), 0)
    assert found.fingerprint == plain.fingerprint
    for part in ("train", "validation", "test"):
        one, other = getattr(plain, part), getattr(found, part)
        assert len(one) == len(other)
        assert one.fingerprint == other.fingerprint
        for how in ({}, {"seed": 1}, {"seed": 1, "rank": 1, "world": 2, "drop_last": True, "start": 1}):
            for (x, y), (inputs, targets) in zip(batches(one, **how), batches(other, **how), strict=True):
                assert torch.equal(x, inputs)
                assert torch.equal(y, targets)
                assert in_layout(inputs)
                assert not in_layout(x)
    ((inputs, _),) = batches(found.train.sample(5))
    assert len(inputs) == 5
    assert in_layout(inputs)


def test_augmented_images_too():
    examples = Examples(torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20))
    split = MemorySplit(examples, identity(3), Augment(flip=True, crop=2))
    for (x, _), (inputs, _) in zip(batches(split, seed=3), batches(ChannelsLast(split), seed=3), strict=True):
        assert torch.equal(x, inputs)
        assert in_layout(inputs)


def test_of_several_inputs_those_that_are_images():
    class Several:
        fingerprint = "several"

        def __len__(self):
            return 4

        def batches(self, batch_size, device, **how):
            yield (torch.rand(4, 3, 6, 5), torch.rand(4, 7)), torch.arange(4)

    (((images, numbers), _),) = batches(ChannelsLast(Several()))
    assert in_layout(images)
    assert numbers.is_contiguous()
    assert images.shape == (4, 3, 6, 5)


def test_what_has_no_such_layout_is_refused():
    with pytest.raises(RecipeError, match=r"data.channels_last: .* inputs are \(7,\); leave it out"):
        load_set(made((7,), channels_last=True), 0)
    assert load_set(made((7,)), 0).input_shape == (7,)
    several = replace(load_set(made((7,)), 0), input_shape=((7,), (5, 6)))

    class Loaded(Made):
        def load(self, seed):
            return several

    with pytest.raises(RecipeError, match=r"inputs are \(7,\) and \(5, 6\)"):
        load_set(Loaded(kind="made", channels_last=True), 0)
