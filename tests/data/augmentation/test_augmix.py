"""AugMix: each operation against PIL's on one image, and the laws of the mixture."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from compresskit.data.augmentation import augmix
from compresskit.data.augmentation.augment import Augment
from compresskit.data.augmentation.augmix import LEVELS, OPERATIONS, AugMix
from compresskit.data.memory import Examples, MemorySplit
from compresskit.data.stored.normalization import measure


def images(count: int = 32, size: int = 33) -> torch.Tensor:
    """Smooth pictures, on which two ways of reading between pixels agree."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    return smooth.clamp(0, 255).to(torch.uint8)


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def sheared(image: Image.Image, x: float, y: float) -> Image.Image:
    middle = image.size[0] / 2
    return affine(image, (1, x, -x * middle, y, 1, -y * middle))


EXPECTED = {  # at a strength s of the full one, with the sign g
    augmix.autocontrast: lambda image, s, g: ImageOps.autocontrast(image),
    augmix.equalize: lambda image, s, g: ImageOps.equalize(image),
    augmix.posterize: lambda image, s, g: ImageOps.posterize(image, 4 - int(4 * s)),
    augmix.solarize: lambda image, s, g: ImageOps.solarize(image, 256 - int(256 * s)),
    augmix.rotate: lambda image, s, g: image.rotate(g * s * 30, resample=Image.Resampling.BILINEAR),
    augmix.shear_x: lambda image, s, g: sheared(image, g * s * 0.3, 0),
    augmix.shear_y: lambda image, s, g: sheared(image, 0, g * s * 0.3),
    augmix.translate_x: lambda image, s, g: affine(image, (1, 0, g * s * image.size[0] / 3, 0, 1, 0)),
    augmix.translate_y: lambda image, s, g: affine(image, (1, 0, 0, 0, 1, g * s * image.size[1] / 3)),
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_is_pils(operation):
    before = images(12)
    strengths = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * 6)
    found = operation(before, strengths, signs)
    assert found.dtype == torch.uint8
    for image, after, strength, sign in zip(before, found, strengths.tolist(), signs.tolist(), strict=True):
        expected = np.asarray(EXPECTED[operation](pil(image), strength, sign)).transpose(2, 0, 1).astype(int)
        difference = np.abs(after.numpy().astype(int) - expected)
        if operation in (augmix.equalize, augmix.posterize, augmix.solarize):
            assert not difference.any()
        # PIL rounds down where we round, and leaves pixels on the border black that we mix with black
        assert np.median(difference) <= 1
        assert (difference > 2).mean() < 0.12, operation.__name__


def test_every_operation_has_its_rival():
    assert set(EXPECTED) == set(OPERATIONS)


def test_an_image_does_not_depend_on_its_batch():
    mix, before = AugMix(), images()
    draws = mix.draw(len(before), torch.Generator().manual_seed(1))
    whole = mix(before, draws)
    parts = torch.cat([mix(before[part], draws[part]) for part in torch.arange(len(before)).split(5)])
    assert (whole.int() - parts.int()).abs().max() <= 1  # float32 sums
    assert not torch.equal(whole, before)
    assert len({tuple(image.flatten().tolist()) for image in mix(before[:1].expand(8, -1, -1, -1), draws[:8])}) == 8


def test_weights_make_a_mean_of_the_image_and_its_chains():
    mix, before = AugMix(width=2, depth=1), images(4)
    draws = mix.draw(4, torch.Generator().manual_seed(2))
    chains = []
    for chain in range(2):
        steps = draws[:, 5:].view(4, 2, 3, 3)[:, chain, 0]
        kinds = (9 * steps[:, 0]).long()
        strengths, signs = (0.1 + 2.9 * steps[:, 1]) / LEVELS, torch.where(steps[:, 2] < 0.5, -1.0, 1.0)
        chains.append(
            torch.cat(
                [OPERATIONS[kinds[i]](before[i : i + 1], strengths[i : i + 1], signs[i : i + 1]) for i in range(4)]
            )
        )
    weights = -torch.log(1 - draws[:, 1:3])
    weights = weights / weights.sum(1, keepdim=True)
    m = draws[:, :1, None, None]
    mixture = sum(weights[:, i, None, None, None] * chain for i, chain in enumerate(chains))
    expected = (m * before + (1 - m) * mixture).round()
    assert (mix(before, draws).double() - expected).abs().max() <= 1


def test_chains_are_those_of_single_images():
    """Image by image, and operation by operation, in the order of the chain."""
    mix, before = AugMix(), images(12)
    draws = mix.draw(12, torch.Generator().manual_seed(4))
    kept, weights, lengths, steps = mix._unpacked(draws)
    shares = -torch.log(1 - weights)
    shares = (1 - kept) * shares / shares.sum(1, keepdim=True)
    for i, image in enumerate(before.split(1)):
        mixed = kept[i] * image
        for chain in range(mix.width):
            changed = image
            for kind, strength, sign in steps[i, chain, : int(lengths[i, chain])]:
                of_full, sense = (0.1 + 2.9 * strength) / LEVELS, -1.0 if sign < 0.5 else 1.0
                changed = OPERATIONS[int(9 * kind)](changed, of_full[None], torch.tensor([sense]))
            mixed = mixed + shares[i, chain] * changed
        assert (mix(before, draws)[i].double() - mixed[0].round()).abs().max() <= 1


def test_lengths_of_chains_are_one_to_three():
    lengths = AugMix()._unpacked(AugMix().draw(3000, torch.Generator().manual_seed(0)))[2]
    assert lengths.unique(return_counts=True)[1].tolist() == pytest.approx([3000] * 3, rel=0.1)


def test_severity_says_how_far_images_go():
    before = images()
    gone = []
    for severity in (1.0, 9.0):
        mix = AugMix(severity=severity)
        after = mix(before, mix.draw(len(before), torch.Generator().manual_seed(3)))
        gone.append((after.float() - before.float()).abs().mean().item())
    assert gone[0] < gone[1]


def test_it_follows_flip_and_crop():
    before = images()
    both, alone = Augment(flip=True, crop=3, augmix=AugMix()), Augment(flip=True, crop=3)
    draws = both.draw(len(before), torch.Generator().manual_seed(1))
    torch.testing.assert_close(both(before, draws), AugMix()(alone(before, draws[:, :3].long()), draws[:, 3:]))


def test_consistency_gives_an_image_and_two_mixtures_of_it():
    """All three flipped and cropped alike; the mixtures are those of AugMix, by draws of their own."""
    augment = Augment(flip=True, crop=2, augmix=AugMix(), consistency=12.0)
    before = images(40)
    draws = augment.draw(40, torch.Generator().manual_seed(1))
    plain, first, second = augment(before, draws).chunk(3)
    moved = Augment(flip=True, crop=2)(before, draws[:, :3])
    assert torch.equal(plain, moved)
    one, other = draws[:, 3:].chunk(2, 1)
    assert torch.equal(first, AugMix()(moved, one))
    assert torch.equal(second, AugMix()(moved, other))
    assert not torch.equal(first, second)


def test_batches_with_consistency_hold_three_views():
    examples = Examples(images(20, 8), torch.arange(20) % 3)
    augment = Augment(augmix=AugMix(), consistency=1.0)
    split = MemorySplit(examples, measure(examples.inputs), augment)
    for inputs, targets in split.batches(8, torch.device("cpu"), seed=0):
        assert len(inputs) == 3 * len(targets)
    (inputs, targets), *_ = split.batches(8, torch.device("cpu"))
    assert len(inputs) == len(targets)  # the stored order has no augmentation
    shares = [next(iter(split.batches(8, torch.device("cpu"), seed=0, rank=rank, world=2)))[0] for rank in (0, 1)]
    whole = next(iter(split.batches(8, torch.device("cpu"), seed=0)))[0]
    assert torch.equal(torch.cat([share.unflatten(0, (3, 4)) for share in shares], 1).flatten(0, 1), whole)


def test_consistency_needs_mixtures():
    with pytest.raises(ValueError, match="consistency: it compares mixtures of an image; add augmix"):
        Augment(consistency=12.0)
