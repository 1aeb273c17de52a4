import numpy as np
import pytest
import torch

from compresskit.data.augmentation.augment import Augment

PAD = {"zeros": "constant", "reflect": "reflect"}


def images(count=64, dtype=torch.uint8):
    return torch.randint(1, 256, (count, 3, 7, 6), generator=torch.Generator().manual_seed(0)).to(dtype)


def slow(image, mirrored, down, right, crop, pad_mode):
    """Pad, cut, mirror: one image at a time, in numpy."""
    padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode=PAD[pad_mode])
    window = padded[:, crop + down : crop + down + image.shape[1], crop + right : crop + right + image.shape[2]]
    return window[:, :, ::-1] if mirrored else window


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("pad_mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("flip", "crop"), [(True, 2), (True, 0), (False, 3), (False, 0)])
def test_each_image_is_padded_cut_and_mirrored_by_its_own_draw(flip, crop, pad_mode, dtype):
    augment = Augment(flip=flip, crop=crop, pad_mode=pad_mode)
    before = images(dtype=dtype)
    draws = augment.draw(len(before), torch.Generator().manual_seed(1))
    after = augment(before, draws)
    assert after.dtype == dtype
    for image, draw, changed in zip(before.numpy(), draws.tolist(), after.numpy(), strict=True):
        np.testing.assert_array_equal(changed, slow(image, *draw, crop, pad_mode))


def test_draws_cover_every_flip_and_shift_evenly():
    draws = Augment(flip=True, crop=1).draw(9000, torch.Generator().manual_seed(0))
    found, counts = draws.unique(dim=0, return_counts=True)
    assert len(found) == 2 * 3 * 3
    assert counts.tolist() == pytest.approx([500] * 18, abs=100)  # standard deviation 22


def test_no_change_when_nothing_is_asked():
    before = images()
    augment = Augment()
    assert torch.equal(augment(before, augment.draw(len(before), torch.Generator().manual_seed(0))), before)
