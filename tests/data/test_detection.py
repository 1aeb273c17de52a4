import os

import numpy as np
import pytest
import torch
from PIL import Image

from compresskit.data.detection import ANCHORS, VOC, VocDetection
from compresskit.errors import DataError
from tests.scenes import Scene, draw, write_voc_detection

CPU = torch.device("cpu")
DIGITS = tuple("0123456789")
SCENES = draw(12, 64, seed=0)


@pytest.fixture
def root(tmp_path):
    write_voc_detection(tmp_path, SCENES[:8], "trainval")
    write_voc_detection(tmp_path, SCENES[8:], "test")
    return tmp_path


def options(root, **changes):
    defaults = {"root": str(root), "train": (2007,), "classes": DIGITS, "size": 64, "workers": 0}
    return VocDetection(**defaults | {"mean": (0, 0, 0), "std": (1, 1, 1)} | changes)


def served(split, **arguments):
    batches = list(split.batches(5, CPU, **arguments))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def by_image(inputs, targets):
    """Boxes of each image, (class, left, top, right, bottom) in fractions, under the bytes of its pixels."""
    found = {}
    for pixels, rows in zip((inputs * 255).round().to(torch.uint8), targets.double(), strict=True):
        kept = rows[rows[:, 0] >= 0]
        half = kept[:, 3:] / 2
        found[pixels.permute(1, 2, 0).numpy().tobytes()] = torch.cat(
            [kept[:, :1], kept[:, 1:3] - half, kept[:, 1:3] + half], 1
        )
    return found


def test_targets_are_the_boxes_of_each_image(root):
    data = options(root).load(seed=0)
    assert (data.task, data.outputs, data.input_shape, data.anchors) == ("detection", 75, (3, 64, 64), ANCHORS)
    assert len(VOC) == 20
    inputs, targets = served(data.train)
    assert targets.shape == (8, max(len(scene.boxes) for scene in SCENES), 5)
    assert targets.dtype == torch.float32
    found = by_image(inputs, targets)
    for scene in SCENES[:8]:
        expected = torch.tensor(scene.boxes).double() / torch.tensor([1, 64, 64, 64, 64])
        # 1e-6: targets are float32
        torch.testing.assert_close(found[scene.image.tobytes()], expected, rtol=0, atol=1e-6)


def test_images_are_stretched_with_their_boxes(tmp_path):
    scene = SCENES[0]
    wide = Scene(
        np.repeat(scene.image, 2, axis=1), [(c, 2 * a, b, 2 * d, e) for c, a, b, d, e in scene.boxes], scene.mask
    )
    targets = []
    for name, drawn in (("square", scene), ("wide", wide)):
        for part in ("trainval", "test"):
            write_voc_detection(tmp_path / name, [drawn], part)
        targets.append(served(options(tmp_path / name, size=32).load(seed=0).test)[1])
    torch.testing.assert_close(*targets, rtol=0, atol=1e-6)  # float32


def test_difficult_objects_and_other_classes_are_left_out(tmp_path):
    for part in ("trainval", "test"):
        write_voc_detection(tmp_path, SCENES, part, difficult=(0, 1, 2))
    _, targets = served(options(tmp_path, classes=("4", "3", "0")).load(seed=0).test)
    expected = [label for scene in SCENES for label, *_ in scene.boxes if label in (3, 4)]
    found = targets[..., 0][targets[..., 0] >= 0]
    assert sorted(found.tolist()) == sorted({4: 0.0, 3: 1.0}[label] for label in expected)
    assert len(expected) > 1


def test_difficult_objects_follow_in_what_is_evaluated_alone(tmp_path):
    """Class c as -2 - c, behind the others; training never sees them, and the validation split does."""
    for part in ("trainval", "test"):
        write_voc_detection(tmp_path, SCENES, part, difficult=(0, 1, 2))
    data = options(tmp_path, crop=False, validation=8).load(seed=0)
    hard = sorted(-2.0 - label for scene in SCENES for label, *_ in scene.boxes if label < 3)
    assert len(hard) > 2
    _, targets = served(data.test)
    labels = targets[..., 0]
    assert sorted(labels[labels < -1].tolist()) == hard
    for rows in targets:
        known = rows[rows[:, 0] != -1]
        assert (known[:, 1:] > 0).all()
        assert not (known[:-1, 0] < 0).logical_and(known[1:, 0] >= 0).any()
    parts = [served(split)[1][..., 0] for split in (data.validation, data.train)]
    assert all((labels < -1).any() for labels in parts)
    assert sorted(torch.cat([labels[labels < -1] for labels in parts]).tolist()) == hard
    assert not (served(data.train, seed=0)[1][..., 0] < -1).any()


def test_flips_move_the_boxes(root):
    data = options(root, crop=False, colour=False).load(seed=0)
    found = by_image(*served(data.train, seed=0))
    mirrored = 0
    for scene in SCENES[:8]:
        expected = torch.tensor(scene.boxes).double() / torch.tensor([1, 64, 64, 64, 64])
        if scene.image.tobytes() not in found:
            mirrored += 1
            image = np.ascontiguousarray(scene.image[:, ::-1]).tobytes()
            expected = torch.cat(
                [expected[:, :1], 1 - expected[:, [3]], expected[:, [2]], 1 - expected[:, [1]], expected[:, [4]]], 1
            )
        else:
            image = scene.image.tobytes()
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e-6)  # float32
    assert 0 < mirrored < 8


def test_crops_keep_the_boxes_on_what_they_frame(tmp_path):
    """A white rectangle on black: wherever a crop leaves it, the box is where the white is."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[30:54, 18:60] = 255
    for part in ("trainval", "test"):
        write_voc_detection(tmp_path, [Scene(image, [(7, 18, 30, 60, 54)], image[..., 0])] * 20, part)
    inputs, targets = served(options(tmp_path, size=96, colour=False).load(seed=0).train, seed=3)
    sizes = set()
    for pixels, (label, x, y, width, height) in zip(inputs[:, 0], targets[:, 0].tolist(), strict=True):
        assert label == 7
        white = pixels > 0.5
        rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        box = [96 * edge for edge in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
        assert [float(edge) for edge in edges] == pytest.approx(box, abs=1.5)  # pixels, which resizing blurs
        sizes.add(round(width, 3))
    assert len(sizes) > 3


def test_objects_that_a_crop_leaves_out_are_dropped(root):
    split = options(root, colour=False).load(seed=0).train
    found = 0
    for seed in range(4):
        _, targets = served(split, seed=seed)
        kept = targets[targets[..., 0] >= 0]
        found += len(kept)
        assert (kept[:, 3:] * 64 >= 0.99).all()  # pixels; float32
        assert (targets[targets[..., 0] < 0] == -1).all()
    assert 0 < found < 4 * sum(len(scene.boxes) for scene in SCENES[:8])


def test_augmentation_depends_on_the_seed_alone(root):
    split = options(root).load(seed=0).train
    inputs, targets = served(split, seed=1)
    torch.manual_seed(123)
    again = served(split, seed=1)
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])
    assert not torch.equal(inputs, served(split, seed=2)[0])


def test_workers_serve_the_same(root):
    alone, helped = (served(options(root, workers=workers).load(seed=0).train, seed=3) for workers in (0, 2))
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])


def test_years_are_joined_and_validation_is_held_out(root):
    write_voc_detection(root, SCENES[:3], "trainval", year=2012)
    data = options(root, train=(2007, 2012), validation=4).load(seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 4, 4)
    assert not served(data.validation)[0].equal(
        served(options(root, split_seed=1, train=(2007, 2012), validation=4).load(seed=0).validation)[0]
    )


def test_fingerprint_follows_boxes_and_options(root):
    before = options(root).load(seed=0)
    assert options(root).load(seed=1).fingerprint == before.fingerprint
    for changes in ({"size": 32}, {"flip": False}, {"crop": False}, {"colour": False}, {"anchors": ((0.1, 0.1),)}):
        assert options(root, **changes).load(seed=0).fingerprint != before.fingerprint
    path = next((root / "VOCdevkit/VOC2007/Annotations").glob("test*.xml"))
    path.write_text(path.read_text().replace("<xmin>", "<xmin>0."))
    after = options(root).load(seed=0)
    assert (after.train.fingerprint == before.train.fingerprint, after.fingerprint == before.fingerprint) == (
        True,
        False,
    )


def test_what_is_refused(root):
    with pytest.raises(DataError, match=r"label_noise: .* leave it out for detection"):
        options(root, label_noise=0.1).load(seed=0)
    with pytest.raises(DataError, match=r"VOC2012/ImageSets/Main/trainval.txt: there is no such file; check data.root"):
        options(root, train=(2007, 2012)).load(seed=0)
    with pytest.raises(ValueError, match=r"VOC2012 has no annotated `test`; use test_part: val"):
        options(root, test=2012)
    with pytest.raises(ValueError, match="val is a part of trainval"):
        options(root, test_part="val")


@pytest.mark.parametrize(
    "text", ["<annotation><object>", "<annotation><object><name>3</name><bndbox/></object></annotation>"]
)
def test_damaged_annotations_are_named(root, text):
    path = root / "VOCdevkit/VOC2007/Annotations/test_00002.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as VOC's annotations \(.*\); mend or remove it$"):
        options(root).load(seed=0)


@pytest.mark.parametrize("place", ["Annotations/test_00002.xml", "ImageSets/Main/test.txt"])
def test_pipes_and_links_to_nowhere(root, place):
    path = root / "VOCdevkit/VOC2007" / place
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"^{path}: a named pipe, where a file is needed"):
        options(root).load(seed=0)
    path.unlink()
    path.symlink_to("/nowhere")
    with pytest.raises(DataError, match=f"^{path}: a link to /nowhere, which cannot be reached"):
        options(root).load(seed=0)


@pytest.mark.parametrize("edges", ["", "nan 1 9 9", "9 1 5 9", "1 inf 9 inf"])
def test_boxes_that_are_none_are_refused(root, edges):
    """A box without numbers would be left out, NaN would go into the loss."""
    path = root / "VOCdevkit/VOC2007/Annotations/test_00002.xml"
    box = "".join(f"<{e}>{v}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), edges.split(), strict=False))
    box = f"<bndbox>{box}</bndbox>" if edges else ""
    path.write_text(f"<annotation><object><name>3</name>{box}</object></annotation>")
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as VOC's annotations"):
        options(root).load(seed=0)


def test_boxes_that_reach_beyond_the_image_are_cut_and_kept(tmp_path):
    """As in files that count pixels from 0."""
    for part in ("trainval", "test"):
        write_voc_detection(tmp_path, [Scene(SCENES[0].image, [(7, -1, -1, 70, 32)], SCENES[0].mask)], part)
    _, targets = served(options(tmp_path).load(seed=0).test)
    assert targets[0, 0].tolist() == [7, 0.5, 0.25, 1, 0.5]


def test_names_of_classes_that_nothing_has(root):
    with pytest.raises(
        DataError, match=r"the part to train on has no object of the classes cat, dog; give data.classes"
    ):
        options(root, classes=("cat", "dog")).load(seed=0)


def test_classes_that_training_never_sees_are_noted(tmp_path):
    box = (10, 10, 30, 30)
    for part, label in (("trainval", 3), ("test", 4)):
        write_voc_detection(tmp_path, [Scene(SCENES[0].image, [(label, *box)], SCENES[0].mask)], part)
    assert options(tmp_path).load(seed=0).notes == ("data: no training image shows 4, but test images do",)


def test_a_damaged_image_is_named(root):
    path = root / "VOCdevkit/VOC2007/JPEGImages/test_00001.jpg"
    Image.fromarray(SCENES[0].image).save(path, format="png")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{path}: cannot be read as an image"):
        served(options(root).load(seed=0).test)
