"""AutoAugment: torchvision's policy, image by image, each behind a seed of its own."""

import pytest
import torch
from torchvision.transforms import AutoAugmentPolicy, v2

from compresskit.commands.recipe import load_recipe
from compresskit.data.augmentation.augment import Augment
from compresskit.data.augmentation.augmix import AugMix
from compresskit.data.augmentation.auto_augment import auto_augment
from compresskit.errors import DataError
from tests.data.augmentation.test_augmix import images


def test_an_image_is_changed_as_torchvision_does_behind_its_seed():
    before, seeds = images(count=6), torch.tensor([5, 1, 3, 3, 9, 2])
    after = auto_augment(before, seeds, "cifar10")
    for number, seed in enumerate(seeds.tolist()):
        torch.manual_seed(seed)
        assert after[number].equal(v2.AutoAugment(AutoAugmentPolicy.CIFAR10)(before[number]))
    assert not after.equal(before)
    assert after[[4, 1]].equal(auto_augment(before[[4, 1]], seeds[[4, 1]], "cifar10"))


def test_policies_differ():
    before, seeds = images(count=16), torch.arange(16)
    found = [auto_augment(before, seeds, policy) for policy in ("cifar10", "imagenet", "svhn")]
    assert not found[0].equal(found[1])
    assert not found[1].equal(found[2])


def test_random_numbers_of_others_stay_as_they_were():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    auto_augment(images(count=2), torch.tensor([7, 8]), "svhn")
    assert torch.rand(3).equal(expected)


def test_it_follows_flip_and_crop():
    before = images(count=8)
    both, alone = Augment(flip=True, crop=3, auto="cifar10"), Augment(flip=True, crop=3)
    draws = both.draw(len(before), torch.Generator().manual_seed(1))
    expected = auto_augment(alone(before, draws[:, :3]), draws[:, 3], "cifar10")
    assert both(before, draws).equal(expected)
    assert len(draws[:, 3].unique()) == 8


def test_it_goes_with_no_augmix():
    with pytest.raises(ValueError, match="auto: augmix is set as well"):
        Augment(auto="svhn", augmix=AugMix())


def test_it_takes_bytes(tmp_path):
    import h5py
    import numpy as np

    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros((8, 3, 8, 8), np.float32)
        file["y"] = np.arange(8) % 2
    path = tmp_path / "r.yaml"
    path.write_text(
        f"data: {{kind: arrays, path: {tmp_path}/data.h5, inputs: x, targets: y, augment: {{auto: cifar10}}}}"
    )
    with pytest.raises(DataError, match=r"data.augment.auto: it takes images of bytes, these are torch.float32"):
        load_recipe(path).data.load(0)
