"""Sets for detection in PASCAL VOC's layout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from xml.etree import ElementTree

import torch
from annotated_types import Ge, Gt, Len
from torch import Tensor

from compresskit.data.dataset import AnySet, DataSet, digest, generator, partition
from compresskit.data.files import FileSplit, sizes
from compresskit.data.reading.regular import reading, regular
from compresskit.data.reading.voc import listed
from compresskit.data.stored.normalization import Normalization
from compresskit.data.stored.oddities import shortened
from compresskit.errors import DataError
from compresskit.numerics.boxes import as_difficult
from compresskit.options import option

if TYPE_CHECKING:
    from torchvision.transforms import v2

Deviation = Annotated[float, Gt(0)]
Length = Annotated[float, Gt(0)]
Year = Literal[2007, 2012]
VOC = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)
# YOLOv2's, from darknet's cfg/yolov2-voc.cfg, where they are in cells of a 13 x 13 grid
ANCHORS = (
    (1.3221 / 13, 1.73145 / 13),
    (3.19275 / 13, 4.00944 / 13),
    (5.05587 / 13, 8.09892 / 13),
    (9.47112 / 13, 4.84053 / 13),
    (11.2364 / 13, 10.0071 / 13),
)
COLOURS = (1 / 1.5, 1.5)  # factors of saturation and brightness: darknet's saturation and exposure of 1.5
HUE = 0.1  # darknet's hue


@option
class VocDetection(AnySet):
    """Images with boxes: root/VOCdevkit/VOC{year}/{JPEGImages,Annotations,ImageSets/Main}, as torchvision reads them.

    Images are stretched to size x size. Objects that the annotations call difficult are left out of training; in
    evaluation map@voc07 alone knows them. Each part is served in a fixed random order (by split_seed), so that its
    first images are a fair sample.
    """

    kind: Literal["voc-detection"] = "voc-detection"
    root: str  # folder that holds VOCdevkit; `~` is the home folder
    train: Annotated[tuple[Year, ...], Len(1)] = (2007, 2012)  # years to train on
    train_part: Literal["trainval", "train"] = "trainval"  # file of ImageSets/Main that lists the training images
    test: Year = 2007  # year to test on
    test_part: Literal["test", "val"] = "test"  # of 2012 only `val` has annotations
    classes: Annotated[tuple[str, ...], Len(1)] = VOC  # objects of other names are left out
    size: Annotated[int, Ge(32)] = 224  # height and width that the model sees
    anchors: Annotated[tuple[tuple[Length, Length], ...], Len(1)] = ANCHORS  # widths and heights, parts of the image's
    crop: bool = True  # in training, cut out a part that shares enough with a box (torchvision's RandomIoUCrop, of SSD)
    flip: bool = True  # in training, mirror left to right with probability 1/2
    colour: bool = True  # in training, change brightness, saturation and hue
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    workers: Annotated[int, Ge(0)] = 4  # processes that read images, for each part; 0 reads in the main process

    def __post_init__(self) -> None:
        if self.test_part == "test" and self.test != 2007:
            raise ValueError(f"test: VOC{self.test} has no annotated `test`; use test_part: val, or test: 2007")
        if self.test_part == "val" and self.train_part == "trainval" and self.test in self.train:
            raise ValueError("test_part: val is a part of trainval; use train_part: train")

    def load(self, seed: int) -> DataSet:
        """The set; annotations are read now, images when they are served.

        Targets are (N, boxes, 5) float32: class, centre x and y, width and height as fractions of the image; rows of
        class -1 fill up images with fewer boxes than the fullest, and in what is not augmented difficult objects of
        class c follow as -2 - c. Raises DataError if files lack or label_noise is set.
        """
        if self.label_noise:
            raise DataError("data.label_noise: it replaces labels of whole images; leave it out for detection")
        parts = [self._listed(year, self.train_part) for year in self.train]
        train, test = self._shuffled(parts), self._shuffled([self._listed(self.test, self.test_part)])
        kept, held = partition(len(train), self)
        notes = self._looked_at(train, test)
        rows = max(1, *(len(objects) for part in (train, test) for objects in part.objects))
        plain, augmented = Pipeline(self._plain(), rows), Pipeline(self._augmented(), rows, difficult=False)
        normalization = Normalization(self.mean, self.std)
        splits = (
            FileSplit(train.take(kept), normalization, self.workers, plain, augmented),
            FileSplit(train.take(held), normalization, self.workers, plain, plain) if len(held) else None,
            FileSplit(test, normalization, self.workers, plain, plain),
        )
        return DataSet(
            *splits,
            task="detection",
            outputs=len(self.anchors) * (5 + len(self.classes)),
            input_shape=(3, self.size, self.size),
            mean=self.mean,
            std=self.std,
            scaled=(True,),
            of_bytes=(True,),
            classes=self.classes,
            fingerprint=digest(self.anchors, self.classes, *(split and split.fingerprint for split in splits)),
            anchors=self.anchors,
            notes=notes,
        )

    def _looked_at(self, train: "Boxed", test: "Boxed") -> tuple[str, ...]:
        """Notes on classes without an object. Raises DataError where no part has any: names that do not fit."""
        labels = [torch.cat(part.objects)[:, 0].long() for part in (train, test)]
        counts = [found[found >= 0].bincount(minlength=len(self.classes)) for found in labels]
        for name, found in zip(("train", "test"), counts, strict=True):
            if not found.any():
                raise DataError(
                    f"{self.root}: the part to {name} on has no object of the classes {shortened(self.classes)}; give "
                    "data.classes the names that the annotations use"
                )
        trained, tested = counts
        unseen = [self.classes[i] for i in ((trained == 0) & (tested > 0)).nonzero()[:, 0].tolist()]
        return (f"data: no training image shows {shortened(unseen)}, but test images do",) if unseen else ()

    def _listed(self, year: int, part: str) -> "Boxed":
        root, folder, names = listed(self.root, year, "Main", part)
        images = [str(folder / "JPEGImages" / f"{name}.jpg") for name in names]
        return Boxed(root, images, [objects(f"{folder / 'Annotations' / name}.xml", self.classes) for name in names])

    def _shuffled(self, parts: list["Boxed"]) -> "Boxed":
        paths, found = [path for part in parts for path in part.paths], [o for part in parts for o in part.objects]
        whole = Boxed(parts[0].folder, paths, found)
        return whole.take(torch.randperm(len(whole), generator=generator("folder order", self.split_seed)))

    def _plain(self) -> "list[v2.Transform]":
        from torchvision.transforms import v2

        return [v2.Resize((self.size, self.size))]

    def _augmented(self) -> "list[v2.Transform]":
        from torchvision.transforms import v2

        colours = [v2.ColorJitter(brightness=COLOURS, saturation=COLOURS, hue=HUE)] if self.colour else []
        crops = [v2.RandomIoUCrop()] if self.crop else []
        flips = [v2.RandomHorizontalFlip()] if self.flip else []
        return [*colours, *crops, *flips, *self._plain()]


@dataclass(frozen=True)
class Boxed:
    """Images of a part. objects: of each image (objects, 5) float32, class, left, top, right and bottom in pixels.

    Difficult ones are behind the others, with the class that `as_difficult` gives them.
    """

    folder: Path
    paths: list[str]
    objects: list[Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> "Boxed":
        chosen = index.tolist()
        return replace(self, paths=[self.paths[i] for i in chosen], objects=[self.objects[i] for i in chosen])

    def target(self, index: int) -> Tensor:
        return self.objects[index]

    def identity(self) -> tuple[object, ...]:
        return sizes(self.folder, self.paths), [objects.tolist() for objects in self.objects]


class Pipeline:
    """Transforms an image with its objects; the result has `rows` rows of class, centre x and y, width and height.

    difficult: False leaves out difficult objects.
    """

    def __init__(self, transforms: "list[v2.Transform]", rows: int, *, difficult: bool = True) -> None:
        from torchvision.transforms import v2

        self._transform = v2.Compose([*transforms, v2.SanitizeBoundingBoxes(), v2.PILToTensor()])
        self._rows, self._difficult = rows, difficult

    def __str__(self) -> str:
        return f"{self._transform} {self._rows}"

    def __call__(self, image: Any, objects: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (3, height, width) and float32 (rows, 5). objects: see Boxed; those cut away are dropped."""
        from torchvision import tv_tensors

        if not self._difficult:
            objects = objects[objects[:, 0] >= 0]
        canvas = (image.height, image.width)
        # boxes may reach beyond the image (in files that count pixels from 0, by one), which torchvision would drop
        edges = objects[:, 1:].clamp(min=0).minimum(torch.tensor([*canvas[::-1], *canvas[::-1]]))
        boxes = tv_tensors.BoundingBoxes(edges, format="XYXY", canvas_size=canvas)
        pixels, found = self._transform(image, {"boxes": boxes, "labels": objects[:, 0]})
        low, high = found["boxes"].as_subclass(Tensor).split(2, dim=1)
        size = torch.tensor(pixels.shape[:0:-1])  # width, height
        target = torch.full((self._rows, 5), -1.0)
        target[: len(low)] = torch.cat([found["labels"][:, None], (low + high) / 2 / size, (high - low) / size], 1)
        return pixels, target


def objects(path: str, classes: Sequence[str]) -> Tensor:
    """The objects of an annotation file that are of these classes, as in Boxed.

    VOC counts pixels from 1 and names the last one that is inside; here the edges are lines between pixels, from 0.
    Raises DataError for a file that cannot be read.
    """
    regular(path)
    with reading(path, "VOC's annotations"):
        entries = ElementTree.parse(path).getroot().iter("object")
        named = [(entry.findtext("name", "").strip(), entry) for entry in entries]
        kept = [(classes.index(name), entry) for name, entry in named if name in classes]
        rows = [(entry.findtext("difficult", "0").strip() == "1", label, *_edges(entry)) for label, entry in kept]
    found = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    difficult = found[:, 0] == 1
    return torch.cat([found[~difficult, 1:], as_difficult(found[difficult, 1:])])


def _edges(entry: ElementTree.Element) -> tuple[float, ...]:
    left, top, right, bottom = (
        float(entry.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    if not (-math.inf < left <= right < math.inf and -math.inf < top <= bottom < math.inf):
        raise ValueError(f"a box from {left}, {top} to {right}, {bottom}")
    return left - 1, top - 1, right, bottom
