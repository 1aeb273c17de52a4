"""Small sets for detection and segmentation: real digits placed on a canvas, with boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Scene:
    """image: (size, size, 3) uint8. boxes: (class, left, top, right, bottom) in pixels, right and bottom outside.

    mask: (size, size) uint8, the digit's class + 1, 0 behind.
    """

    image: np.ndarray
    boxes: list[tuple[int, int, int, int, int]]
    mask: np.ndarray


def draw(count: int, size: int, seed: int) -> list[Scene]:
    """Scenes of one to three digits of mnist-mini that do not overlap, each in a colour of its own on a dark ground."""
    with files("compresskit.data").joinpath("mnist-mini.npz").open("rb") as file, np.load(file) as arrays:
        digits, labels = arrays["train_inputs"], arrays["train_targets"]
    random = np.random.default_rng(seed)
    return [_scene(digits, labels, size, random) for _ in range(count)]


def _scene(digits: np.ndarray, labels: np.ndarray, size: int, random: np.random.Generator) -> Scene:
    image = random.integers(0, 40, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    boxes: list[tuple[int, int, int, int, int]] = []
    for _ in range(int(random.integers(1, 4))):
        index = int(random.integers(len(labels)))
        ink = digits[index].squeeze() > 100
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left = (int(random.integers(size - side + 1)) for side in ink.shape)
        bottom, right = top + ink.shape[0], left + ink.shape[1]
        if any(left < r and x < right and top < b and t < bottom for _, x, t, r, b in boxes):
            continue  # the first always finds its place
        image[top:bottom, left:right][ink] = random.integers(128, 256, 3, dtype=np.uint8)
        mask[top:bottom, left:right][ink] = labels[index] + 1
        boxes.append((int(labels[index]), left, top, right, bottom))
    return Scene(image, boxes, mask)


def write_voc_detection(
    root: Path, scenes: Sequence[Scene], part: str, *, year: int = 2007, difficult: Sequence[int] = ()
) -> None:
    """Adds `part` to root/VOCdevkit/VOC{year}; the digits' names are "0" to "9". difficult: classes to be called so.

    Images are PNG files with the suffix .jpg, so that their pixels stay as they are.
    """
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"{part}_{number:05d}" for number in range(len(scenes))]
    for name, scene in zip(names, scenes, strict=True):
        Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{name}.jpg", format="png")
        (folder / "Annotations" / f"{name}.xml").write_text(_annotation(name, scene, difficult))
    (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


def _annotation(name: str, scene: Scene, difficult: Sequence[int]) -> str:
    """In VOC's form, whose first pixel is 1 and whose last ones belong to the object."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>{int(label in difficult)}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, left, top, right, bottom in scene.boxes
    )
    return f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"


def write_voc_segmentation(root: Path, scenes: Sequence[Scene], part: str, *, year: int = 2012) -> None:
    """Adds `part` to root/VOCdevkit/VOC{year}: masks are indexed PNGs, 255 on the background next to a digit."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"{part}_{number:05d}" for number in range(len(scenes))]
    for name, scene in zip(names, scenes, strict=True):
        Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{name}.jpg", format="png")
        mask = Image.frombytes("P", scene.mask.shape[::-1], with_border(scene.mask).tobytes())
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        mask.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


def with_border(mask: np.ndarray) -> np.ndarray:
    """The mask with 255 on the background next to a digit, as VOC draws its objects."""
    wide = np.pad(mask > 0, 1)
    near = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return np.where(near & (mask == 0), np.uint8(255), mask)


# Cityscapes' ids of its train ids 0 to 10: road, sidewalk, building, wall, fence, pole, traffic light, traffic sign,
# vegetation, terrain, sky
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)


def write_cityscapes(root: Path, scenes: Sequence[Scene], part: str, cities: Sequence[str] = ("ulm", "bonn")) -> None:
    """Adds `part` in the layout of Cityscapes, its cities in turn; the mask's class k is train id k, borders id 0."""
    ids = np.zeros(256, np.uint8)
    ids[: len(CITYSCAPES_IDS)] = CITYSCAPES_IDS
    for number, scene in enumerate(scenes):
        city = cities[number % len(cities)]
        name = f"{city}_{number:06d}_000019"
        mask = ids[with_border(scene.mask)]
        for kind, suffix, pixels in (("leftImg8bit", "leftImg8bit", scene.image), ("gtFine", "gtFine_labelIds", mask)):
            folder = root / kind / part / city
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{name}_{suffix}.png")
