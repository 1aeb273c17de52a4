"""Several arrays as the inputs of one network: each served as it would be alone, and all with their targets."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from compresskit.data.arrays import Arrays
from compresskit.data.augmentation.augment import Augment
from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import DataError
from tests.data.test_arrays import CPU, write


def stored(count=40):
    """Sample i has i in its image, 3 i as its features, i mod 7 as its tokens, i mod 4 as its class."""
    numbers = np.arange(count)
    return {
        "image": np.broadcast_to(numbers[:, None, None, None], (count, 2, 6, 5)).astype(np.uint8),
        "features": np.stack([3.0 * numbers, np.random.default_rng(0).normal(size=count)], 1),
        "words": np.broadcast_to(numbers[:, None] % 7, (count, 3)).astype(np.uint8),
        "targets": numbers % 4,
    }


@pytest.fixture
def load(tmp_path):
    def made(arrays=None, **options):
        path = write(tmp_path / "a.npz", stored() if arrays is None else arrays)
        options = {"inputs": ("image", "features", "words"), "tokens": ("words",), "test_fraction": 0.25} | options
        return Arrays(path=path, **options).load(seed=0)

    return made


def served(split, **options):
    batches = list(split.batches(7, CPU, **options))
    several = zip(*(inputs for inputs, _ in batches), strict=True)
    return tuple(torch.cat(one) for one in several), torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize("suffix", ["npz", "h5"])
@pytest.mark.parametrize("seed", [None, 3])
def test_each_is_served_as_it_would_be_alone(tmp_path, suffix, seed):
    path = write(tmp_path / f"a.{suffix}", stored())
    options = {"path": path, "test_fraction": 0.25, "validation": 6, "limit": 20}
    data = Arrays(inputs=("image", "features", "words"), tokens=("words",), **options).load(0)
    alone = [Arrays(inputs=name, tokens=name == "words", **options).load(0) for name in ("image", "features", "words")]
    assert data.input_shape == ((2, 6, 5), (2,), (3,))
    assert (data.tokens, data.scaled) == ((False, False, True), (True, True, False))
    assert data.mean == alone[0].mean + alone[1].mean
    assert data.std == alone[0].std + alone[1].std
    for part in ("train", "validation", "test"):
        inputs, targets = served(getattr(data, part), seed=seed)
        for one, other in zip(inputs, alone, strict=True):
            batches = list(getattr(other, part).batches(7, CPU, seed=seed))
            assert torch.equal(one, torch.cat([x for x, _ in batches]))
            assert torch.equal(targets, torch.cat([y for _, y in batches]))


def test_what_belongs_together_stays_together(load):
    data = load(normalize="none", validation=5, limit=20)
    for split in (data.train, data.validation, data.test, data.train.sample(7)):
        (image, features, words), targets = served(split, seed=1)
        number = (image[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(features[:, 0], 3.0 * number)
        assert torch.equal(words[:, 0], number % 7)
        assert torch.equal(targets, number % 4)
        assert words.dtype == torch.int64
    ranks = [served(data.train, seed=1, rank=rank, world=2)[1] for rank in (0, 1)]
    assert sum(map(len, ranks)) == len(data.train)


def test_groups_are_read(tmp_path):
    arrays = {f"{part}/{name}": array for part in ("train", "test") for name, array in stored(8).items()}
    data = Arrays(path=write(tmp_path / "a.h5", arrays), inputs=("image", "words"), tokens=("words",)).load(0)
    assert (len(data.train), len(data.test), data.input_shape) == (8, 8, ((2, 6, 5), (3,)))


def test_the_fingerprint_follows_every_input(load):
    others = []
    for name, place in (("image", (0, 0, 0, 0)), ("features", (5, 1)), ("words", (7, 2))):
        arrays = stored()
        arrays[name][place] += 1
        others.append(load(arrays).fingerprint)
    variants = [load(tokens=False), load(inputs=("features", "image", "words"))]
    assert len({load().fingerprint, *others, *(data.fingerprint for data in variants)}) == 6
    assert load().fingerprint == load().fingerprint


def test_the_only_images_are_augmented(load):
    data = load(normalize="none", augment=Augment(flip=True, crop=2))
    plain = load(normalize="none")
    (image, *others), targets = served(data.train, seed=2)
    (unchanged, *same), labels = served(plain.train, seed=2)
    assert not torch.equal(image, unchanged)
    assert all(map(torch.equal, others, same))
    assert torch.equal(targets, labels)
    assert torch.equal(served(data.test, seed=2)[0][0], served(plain.test, seed=2)[0][0])


def test_channels_are_added_to_images_alone(load):
    arrays = stored() | {"image": stored()["image"][:, 0]}
    assert load(arrays, add_channel=True).input_shape == ((1, 6, 5), (2,), (3,))


def test_what_never_changes_is_noted_by_its_input(load):
    arrays = stored()
    arrays["features"][:, 1] = 2
    arrays["words"][:] = 1
    (note,) = load(arrays).notes
    assert note == "data: 1 of 2 channels of training input 2 are constant (1): they teach nothing"


BLANK = np.zeros((40, 2, 5, 5), np.uint8)
WRONG = {
    "lengths": ({"features": np.ones((39, 2))}, {}, r"features of shape \(39, 2\) and targets of shape \(40,\) do not"),
    "nan": ({"features": np.full((40, 2), np.nan)}, {}, "features: 80 of 80 values are NaN or infinite in float32"),
    "real tokens": ({"words": np.ones((40, 2))}, {}, "words: of type float64, and tokens are whole numbers; store"),
    "missing": (
        {},
        {"inputs": ("image", "sound"), "tokens": ()},
        "holds no array sound, only features, image, ",
    ),
    "channels last": ({"image": np.zeros((40, 6, 6, 3), np.uint8)}, {}, "image: of shape .* with channels last"),
    "no images": (
        {},
        {"inputs": ("features", "words"), "augment": Augment(flip=True)},
        r"data\.augment: it changes the images of one input, and none of the 2 is of images",
    ),
    "two of images": (
        {"other": BLANK},
        {"inputs": ("image", "other"), "tokens": (), "augment": Augment(flip=True)},
        r"data\.augment: it changes the images of one input, and 2 of the 2 are of images",
    ),
    "views": (
        {},
        {"augment": Augment(augmix=AugMix(), consistency=1.0)},
        r"data\.augment\.consistency: it compares views of an only input",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name(load, case):
    changes, options, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        load(stored() | changes, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('"inputs": ["a", "b"], "tokens": ["c"]', "tokens: no input is named c; inputs are a, b"),
        ('"inputs": ["a"]', "at least 2 items"),
    ],
)
def test_wrong_names_are_refused_with_the_recipe(options, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Arrays).validate_json(f'{{"kind": "arrays", "path": "a", {options}}}', strict=True)
