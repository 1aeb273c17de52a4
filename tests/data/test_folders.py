import gc
import multiprocessing
import os
import shutil
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from compresskit.data.augmentation.augmix import AugMix
from compresskit.data.dataset import generator
from compresskit.data.folders import ImageFolder, _listed
from compresskit.errors import DataError

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def root(tmp_path):
    """Eight training and four test images of each class; all pixels of an image are of one colour of its own."""
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                colour = (10 * label, 10 * i + 5, 100 if part == "train" else 200)
                pixels = np.full((12, 10 + i, 3), colour, np.uint8)
                pixels[:, : 5 + i // 2] += 20
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def options(root, **changes):
    return ImageFolder(**{"root": str(root), "size": 8, "resize": 8, "workers": 0} | changes)


def served(split, **arguments):
    batches = list(split.batches(5, CPU, **arguments))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_images_are_resized_cut_normalised_and_labelled_by_sorted_class(root):
    data = options(root, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0)).load(seed=0)
    assert (data.outputs, data.input_shape, len(data.train), len(data.test)) == (3, (3, 8, 8), 24, 12)
    assert (data.classes, data.of_bytes) == (tuple(sorted(path.name for path in (root / "train").iterdir())), (True,))
    inputs, targets = served(data.test)
    pixels = (inputs * torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1) + 0.5) * 255
    assert inputs.shape == (12, 3, 8, 8)
    torch.testing.assert_close(pixels[:, 0, 4, 7], 10.0 * targets, atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels[:, 2, 4, 7], torch.full((12,), 200.0), atol=1e-3, rtol=0)


def test_stored_order_is_fixed_and_mixes_the_classes(root):
    inputs, targets = served(options(root).load(seed=0).train)
    again, _ = served(options(root).load(seed=1).train)
    assert torch.equal(inputs, again)
    assert targets.tolist() != sorted(targets.tolist())


@pytest.mark.parametrize("crop", ["random-resized", "random", "center"])
def test_augmentation_depends_on_the_seed_alone(crop, root):
    split = options(root, crop=crop, padding=2).load(seed=0).train
    state = torch.get_rng_state()
    inputs, targets = served(split, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    again, _ = served(split, seed=1)
    other, _ = served(split, seed=2)
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, other)
    assert targets.bincount().tolist() == [8, 8, 8]


def test_augmix_changes_what_is_trained_on(root):
    plain = options(root, crop="center", flip=False).load(seed=0)
    mixed = options(root, crop="center", flip=False, augmix=AugMix(severity=9)).load(seed=0)
    inputs, _ = served(mixed.train, seed=1)
    assert not torch.equal(inputs, served(plain.train, seed=1)[0])
    assert torch.equal(inputs, served(mixed.train, seed=1)[0])
    assert torch.equal(served(mixed.test)[0], served(plain.test)[0])


def test_each_image_has_its_own_draw(root):
    data = options(root, flip=True, crop="center", resize=8, mean=(0, 0, 0), std=(1, 1, 1)).load(seed=0)
    inputs, _ = served(data.train, seed=0)
    bright_left = inputs[:, 0, 0, 0] > inputs[:, 0, 0, 7]
    assert 0 < bright_left.sum() < len(inputs)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_only_the_training_part_is_augmented(part, root):
    split = getattr(options(root, crop="random", padding=4, validation=6).load(seed=0), part)
    plain, _ = served(split)
    shuffled, _ = served(split, seed=0)
    assert torch.equal(plain.flatten(1).sum(1).sort().values, shuffled.flatten(1).sum(1).sort().values)


def test_workers_ranks_and_start_change_nothing(root):
    alone, helped = (options(root, workers=workers).load(seed=0).train for workers in (0, 2))
    whole = list(alone.batches(6, CPU, seed=3))
    by_workers = list(helped.batches(6, CPU, seed=3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, by_workers, strict=True))
    # the same workers serve a second epoch, cut short, and a third
    next(helped.batches(6, CPU, seed=4))
    rest = list(helped.batches(6, CPU, seed=3, start=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], rest, strict=True))
    halves = [list(alone.batches(6, CPU, seed=3, rank=rank, world=2)) for rank in (0, 1)]
    for both, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(both[0], torch.cat([left[0], right[0]]))


def test_a_second_loop_stops_the_first(root):
    split = options(root).load(seed=0).train
    first = split.batches(6, CPU)
    next(first)
    next(split.batches(6, CPU))
    with pytest.raises(RuntimeError, match="a second loop over these samples began"):
        next(first)


def test_a_sample_is_the_first_of_the_random_order(root):
    whole = options(root).load(seed=0).train
    sample = whole.sample(5)
    assert len(sample) == 5
    assert torch.equal(served(sample)[0], served(whole)[0][:5])
    assert sample.fingerprint != whole.fingerprint


def test_validation_noise_and_limit(root):
    clean, noisy = (options(root, validation=6, limit=10, label_noise=noise).load(seed=0) for noise in (0.0, 0.9))
    assert (len(clean.train), len(clean.validation), len(clean.test)) == (10, 6, 12)
    assert torch.equal(served(clean.train)[0], served(noisy.train)[0])
    assert not torch.equal(served(clean.train)[1], served(noisy.train)[1])
    assert torch.equal(served(clean.validation)[1], served(noisy.validation)[1])
    assert clean.fingerprint != noisy.fingerprint


def test_validation_folder(root):
    data = options(root, validation_folder="val").load(seed=0)
    assert len(data.validation) == 12


def test_fingerprint_follows_files_and_transforms(root):
    before = options(root).load(seed=0)
    assert options(root).load(seed=5).fingerprint == before.fingerprint
    assert options(root, size=7).load(seed=0).fingerprint != before.fingerprint
    assert before.train.fingerprint != before.test.fingerprint
    Image.new("RGB", (40, 40), (1, 2, 3)).save(root / "val" / "cat" / "0.png")
    after = options(root).load(seed=0)
    assert after.train.fingerprint == before.train.fingerprint
    assert after.test.fingerprint != before.test.fingerprint


def test_workers_end_by_themselves_when_their_split_is_garbage(root, monkeypatch):
    """torch terminates those that have not ended after five seconds."""
    killed = []
    monkeypatch.setattr(BaseProcess, "terminate", lambda process: killed.append(process) or process.kill())
    split = options(root, workers=2).load(seed=0).train
    served(split)
    split.cycle = split
    del split
    gc.collect()
    assert not killed
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_on_one_line(workers, root):
    damaged = root / "val" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    split = options(root, workers=workers).load(seed=0).test
    with pytest.raises(DataError, match=rf"^{damaged}: cannot be read as an image \(.*\); mend or remove it$"):
        served(split)


def test_missing_folders_and_classes(root):
    with pytest.raises(DataError, match=r"test: cannot be read as a folder with one folder of .*data\.root"):
        options(root, test="test").load(seed=0)
    (root / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"train: no image of the classes emu; give a folder for each"):
        options(root).load(seed=0)
    Image.new("RGB", (9, 9)).save(root / "train" / "emu" / "0.png")
    with pytest.raises(DataError, match="train and val differ in the classes emu, which val lacks; give both the same"):
        options(root).load(seed=0)
    (root / "train" / "emu").rename(root / "val" / "emu")
    with pytest.raises(DataError, match="train and val differ in the classes emu, which train lacks"):
        options(root).load(seed=0)


def test_one_class_is_refused(root):
    for part in ("train", "val"):
        for name in CLASSES[1:]:
            shutil.rmtree(root / part / name)
    with pytest.raises(DataError, match=r"train: 1 folders of classes; give a folder for each of two classes or more"):
        options(root).load(seed=0)


def test_files_that_are_left_out_are_noted(root):
    assert options(root).load(seed=0).notes == ()
    (root / "train" / "cat" / ".hidden").touch()
    (root / "train" / "cat" / "deeper").mkdir()
    (root / "train" / "cat" / "deeper" / "moving.gif").touch()
    (root / "train" / "list.txt").touch()
    data = options(root).load(seed=0)
    assert len(data.train) == 24
    assert data.notes == (f"{root}/train: 2 files are left out, such as {root}/train/cat/deeper/moving.gif",)


def test_names_that_are_no_text_can_be_noted(root):
    open(os.fsencode(root / "train") + b"/\xff.txt", "w").close()
    (note,) = options(root).load(seed=0).notes
    assert note.encode().decode().endswith("/train/\N{REPLACEMENT CHARACTER}.txt")


def test_files_are_listed_as_torchvision_lists_them(root):
    for name in ("train/cat/a/0.png", "train/cat/a-b/0.PNG", "train/cat/a/c/1.jpeg", "train/cat/a!.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "train" / "dog" / "0.png", root / name)
    found, _ = _listed(options(root), "train")
    samples = datasets.ImageFolder(root / "train").samples
    order = torch.randperm(len(samples), generator=generator("folder order", 0)).tolist()
    assert list(zip(found.paths, found.labels.tolist(), strict=True)) == [samples[i] for i in order]


def test_links_that_lead_in_a_circle_are_refused(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    (root / "train" / "cat" / "and").symlink_to(root / "train")
    with pytest.raises(DataError, match=r"train/cat/a\w+: a link to a folder that it lies in itself; remove it"):
        options(root).load(seed=0)


def test_a_folder_that_may_not_be_read_is_refused(root, monkeypatch):
    """Not taken for an empty one."""
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"train: cannot be read as a folder .*Permission denied: '.*dog'"):
        options(root).load(seed=0)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_refused_when_files_are_listed(kind, root):
    path = root / "train" / "owl" / "odd.png"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/nowhere/gone.png")
    with pytest.raises(DataError, match=rf"^{path}: a (named pipe|link to /nowhere/gone.png, which cannot be reached)"):
        options(root).load(seed=0)


def test_names_that_are_no_text_are_served_and_named(root):
    path = os.fsencode(root / "train" / "owl") + b"/\xff.png"
    with open(path, "wb") as file:
        Image.new("RGB", (9, 9)).save(file, format="png")
    assert len(served(options(root).load(seed=0).train)[0]) == 25
    os.truncate(path, 30)
    with pytest.raises(DataError, match="\\udcff.png: cannot be read as an image"):
        served(options(root, workers=1).load(seed=0).train)


def test_grey_images_of_16_bits_keep_their_levels(tmp_path):
    for part in ("train", "val"):
        for level, name in ((5000, "dark"), (50_000, "light")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(np.full((9, 9), level, np.uint16)).save(tmp_path / part / name / "0.png")
    inputs, targets = served(options(tmp_path, mean=(0, 0, 0), std=(1, 1, 1)).load(seed=0).test)
    torch.testing.assert_close(inputs[:, 0, 0, 0] * 255, torch.tensor([19.0, 195.0])[targets], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 2, "validation_folder": "val"}, "exclude each other"),
        ({"size": 9}, "resize 8 is smaller than size 9"),
    ],
)
def test_options_that_contradict_each_other(changes, message, root):
    with pytest.raises(ValueError, match=message):
        options(root, **changes)


def test_auto_augment_changes_what_is_trained_on(root):
    plain = options(root, crop="center", flip=False).load(seed=0)
    changed = options(root, crop="center", flip=False, auto="imagenet").load(seed=0)
    inputs, _ = served(changed.train, seed=1)
    assert not torch.equal(inputs, served(plain.train, seed=1)[0])
    assert torch.equal(inputs, served(changed.train, seed=1)[0])
    assert torch.equal(served(changed.test)[0], served(plain.test)[0])
    with pytest.raises(ValueError, match="auto: augmix is set as well"):
        options(root, auto="svhn", augmix=AugMix())
