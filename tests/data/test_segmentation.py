import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from compresskit.data.segmentation import Cityscapes, VocSegmentation
from compresskit.errors import DataError
from tests.scenes import CITYSCAPES_IDS, draw, with_border, write_cityscapes, write_voc_segmentation

CPU = torch.device("cpu")
SCENES = draw(12, 64, seed=0)
WRITERS = {VocSegmentation: write_voc_segmentation, Cityscapes: write_cityscapes}
BOTH = pytest.mark.parametrize("kind", WRITERS)


def written(kind, folder, scenes=SCENES, held=4):
    for part, drawn in (("train", scenes[:-held]), ("val", scenes[-held:])):
        WRITERS[kind](folder, drawn, part)
    return folder


def options(kind, root, **changes):
    defaults = {"root": str(root), "size": (64, 64), "flip": False, "crop": False, "workers": 0}
    return kind(**defaults | {"mean": (0, 0, 0), "std": (1, 1, 1)} | changes)


def served(split, **arguments):
    batches = list(split.batches(3, CPU, **arguments))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def pixels_of(inputs):
    return (inputs * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@BOTH
def test_targets_are_the_masks_of_their_images(kind, tmp_path):
    data = options(kind, written(kind, tmp_path)).load(seed=0)
    outputs = 21 if kind is VocSegmentation else 19
    assert (data.task, data.outputs, data.input_shape, data.validation) == ("segmentation", outputs, (3, 64, 64), None)
    expected = {scene.image.tobytes(): with_border(scene.mask) for scene in SCENES}
    for split, count in ((data.train, 8), (data.test, 4)):
        inputs, targets = served(split)
        assert (targets.shape, targets.dtype) == ((count, 64, 64), torch.int64)
        for image, target in zip(pixels_of(inputs), targets.numpy(), strict=True):
            np.testing.assert_array_equal(target, expected[image.tobytes()])


def test_cityscapes_counts_the_ids_that_it_evaluates_alone(tmp_path):
    scene = SCENES[0]
    for part in ("train", "val"):
        write_cityscapes(tmp_path, [scene], part, ["ulm"])
    path = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)).save(path)
    _, targets = served(options(Cityscapes, tmp_path).load(seed=0).test)
    found = targets.flatten()[:256]
    others = {**dict(zip(CITYSCAPES_IDS, range(11), strict=True)), 24: 11, 25: 12, 26: 13, 27: 14, 28: 15}
    others |= {31: 16, 32: 17, 33: 18}  # person, rider, car, truck, bus; train, motorcycle, bicycle
    assert found.tolist() == [others.get(value, 255) for value in range(256)]


@BOTH
def test_image_and_mask_are_moved_together(kind, tmp_path):
    data = options(kind, written(kind, tmp_path), flip=True, crop=True).load(seed=0)
    plain, _ = served(data.train)
    inputs, targets = served(data.train, seed=1)
    assert {image.tobytes() for image in pixels_of(inputs)} != {image.tobytes() for image in pixels_of(plain)}
    bright = inputs.amax(1) > 0.5  # digits; the ground is darker than 40 / 255
    assert bright.sum() > 200
    # stretched digits are blurred, so that a few bright pixels lie beyond the digit's border
    assert (bright & (targets > 0)).sum() > 0.95 * bright.sum()
    again, _ = served(data.train, seed=1)
    assert torch.equal(inputs, again)
    assert torch.equal(served(data.test)[1], served(data.test, seed=None)[1])


def test_flips_are_whole_mirrors(tmp_path):
    data = options(VocSegmentation, written(VocSegmentation, tmp_path), flip=True).load(seed=0)
    expected = {scene.image.tobytes(): with_border(scene.mask) for scene in SCENES}
    mirrored = 0
    for image, target in zip(*(x.numpy() for x in served(data.train, seed=0)), strict=True):
        image = pixels_of(torch.from_numpy(image)[None])[0]
        if image.tobytes() not in expected:
            image, target = image[:, ::-1], target[:, ::-1]
            mirrored += 1
        np.testing.assert_array_equal(target, expected[image.tobytes()])
    assert 0 < mirrored < 8


def test_masks_are_scaled_to_the_nearest_pixel(tmp_path):
    data = options(VocSegmentation, written(VocSegmentation, tmp_path), size=(32, 128)).load(seed=0)
    inputs, targets = served(data.test)
    assert (inputs.shape, targets.shape) == ((4, 3, 32, 128), (4, 32, 128))
    whole = served(options(VocSegmentation, tmp_path).load(seed=0).test)[1]
    assert torch.equal(targets, whole[:, ::2].repeat_interleave(2, dim=2))


def test_parts_limit_and_fingerprint(tmp_path):
    root = written(VocSegmentation, tmp_path)
    data = options(VocSegmentation, root, validation=3, limit=4).load(seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 3, 4)
    assert options(VocSegmentation, root, validation=3, limit=4).load(seed=9).fingerprint == data.fingerprint
    before = options(VocSegmentation, root).load(seed=0)
    assert options(VocSegmentation, root, size=(64, 32)).load(seed=0).fingerprint != before.fingerprint
    (root / "VOCdevkit/VOC2012/SegmentationClass/val_00000.png").write_bytes(b"another mask")
    after = options(VocSegmentation, root).load(seed=0)
    assert (after.train.fingerprint, after.test.fingerprint != before.test.fingerprint) == (
        *(before.train.fingerprint, True),
    )


def test_cityscapes_are_listed_by_name(tmp_path, monkeypatch):
    """The file system lists them in an order of its own."""
    import os

    written(Cityscapes, tmp_path)
    first = options(Cityscapes, tmp_path).load(seed=0)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    assert options(Cityscapes, tmp_path).load(seed=0).fingerprint == first.fingerprint


@pytest.mark.parametrize("colours", [2, 16, 256])
def test_masks_of_fewer_bits_are_read(tmp_path, colours):
    """PIL writes an image of few colours with 1 or 4 bits a pixel."""
    root = written(VocSegmentation, tmp_path)
    mask = (np.arange(64 * 64).reshape(64, 64) % min(colours, 11)).astype(np.uint8)
    image = Image.frombytes("P", (64, 64), mask.tobytes())
    image.putpalette(list(range(3 * colours)) if colours < 80 else [0] * 768)
    image.save(root / "VOCdevkit/VOC2012/SegmentationClass/val_00000.png")
    _, targets = served(options(VocSegmentation, root).load(seed=0).test)
    assert any(np.array_equal(target, mask) for target in targets.numpy())


@BOTH
def test_missing_folders(kind, tmp_path):
    with pytest.raises(DataError, match=r"data\.root") as caught:
        options(kind, tmp_path).load(seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass"])
def test_missing_files(tmp_path, folder):
    root = written(VocSegmentation, tmp_path)
    next((root / "VOCdevkit/VOC2012" / folder).glob("val_00001.*")).unlink()
    with pytest.raises(DataError, match=r"val_00001\."):
        served(options(VocSegmentation, root).load(seed=0).test)


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file(tmp_path, folder, kind):
    root = written(VocSegmentation, tmp_path)
    path = next((root / "VOCdevkit/VOC2012" / folder).glob("val_00001.*"))
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/nowhere")
    with pytest.raises(DataError, match=rf"^{path}: a (named pipe|link to /nowhere)"):
        options(VocSegmentation, root).load(seed=0)


@pytest.mark.parametrize("content", [None, b"\n", b"\xff\xfe\xff"])
def test_lists_that_are_none(tmp_path, content):
    path = written(VocSegmentation, tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}: .*check data\.root"):
        options(VocSegmentation, tmp_path).load(seed=0)


def png_of_bits(bits, values):
    """A grey PNG of 2 or 4 bits, which PIL reads but does not write: its levels are stretched to 0 .. 255."""
    height, width = values.shape
    packed = b"".join(
        b"\0" + int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(width * bits // 8) for row in values
    )
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text)) for kind, text in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("content", ["grey of 2 bits", "grey of 4 bits", "JPEG"])
def test_masks_whose_numbers_change_when_read_are_refused(tmp_path, content):
    root = written(VocSegmentation, tmp_path)
    path = root / "VOCdevkit/VOC2012/SegmentationClass/val_00001.png"
    values = np.arange(64 * 64).reshape(64, 64) % 4
    if content == "JPEG":
        Image.fromarray(values.astype(np.uint8)).save(path, format="jpeg")
    else:
        path.write_bytes(png_of_bits(int(content.split()[2]), values))
        assert np.asarray(Image.open(path)).max() > 3
    with pytest.raises(DataError, match=r"val_00001\.png: no mask of its image; give"):
        served(options(VocSegmentation, root).load(seed=0).test)


def save_mask(root, image):
    image.save(root / "VOCdevkit/VOC2012/SegmentationClass/val_00001.png")


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (64, 64)), Image.new("L", (64, 32)), Image.new("I;16", (64, 64), 300)]
)
def test_what_is_no_mask_is_named(tmp_path, image):
    root = written(VocSegmentation, tmp_path)
    save_mask(root, image)
    with pytest.raises(DataError, match=r"val_00001\.png: no mask of its image; give"):
        served(options(VocSegmentation, root).load(seed=0).test)


def test_damaged_masks_are_named_on_one_line(tmp_path):
    root = written(VocSegmentation, tmp_path)
    path = root / "VOCdevkit/VOC2012/SegmentationClass/val_00001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(
        DataError, match=r"val_00001\.png: cannot be read as a mask \(.*\); mend or remove it"
    ) as caught:
        served(options(VocSegmentation, root).load(seed=0).test)
    assert "\n" not in str(caught.value)


def test_label_noise_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.label_noise: .* leave it out for segmentation"):
        options(VocSegmentation, written(VocSegmentation, tmp_path), label_noise=0.1).load(seed=0)


def test_a_part_without_masks_is_refused_in_words(tmp_path):
    """VOC published no masks of `test` but those of 2007."""
    root = written(VocSegmentation, tmp_path)
    with pytest.raises(ValueError, match="VOC2012 has no masks of `test`; use test: val, or year: 2007"):
        options(VocSegmentation, root, test="test")


def test_no_image_is_trained_and_tested_on(tmp_path):
    with pytest.raises(ValueError, match="val is a part of trainval; use train: train"):
        options(VocSegmentation, tmp_path, train="trainval", test="val")
