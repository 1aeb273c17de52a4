"""Image folders: one folder of images for each class, cropped and flipped in training."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from compresskit.data.augmentation.augmix import AugMix
from compresskit.data.augmentation.auto_augment import Policy
from compresskit.data.dataset import AnySet, DataSet, corrupt, digest, generator, partition
from compresskit.data.files import FileSplit, sizes
from compresskit.data.reading.regular import at_home, reading
from compresskit.data.stored.normalization import Normalization
from compresskit.data.stored.oddities import shortened
from compresskit.errors import DataError
from compresskit.options import option

if TYPE_CHECKING:
    from torchvision.transforms import v2

Deviation = Annotated[float, Gt(0)]
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@option
class ImageFolder(AnySet):
    """Images in one folder for each class: root/train/CLASS/*, root/val/CLASS/* (ImageNet, CINIC-10).

    Classes are numbered by the sorted names of their folders. Each part is served in a fixed random order (by
    split_seed), so that its first images are a fair sample.
    """

    kind: Literal["image-folder"] = "image-folder"
    root: str  # folder of the parts; `~` is the home folder
    train: str = "train"  # folder to train on
    test: str = "val"  # folder to test on
    validation_folder: str | None = None  # folder to validate on, in place of `validation`
    size: Annotated[int, Ge(1)] = 224  # height and width that the model sees
    resize: Annotated[int, Ge(1)] = 256  # shorter side before a crop of `size`; not used by crop: random-resized
    # In training: a part of random size and aspect scaled to `size`; a random window; or the centre as in testing
    crop: Literal["random-resized", "random", "center"] = "random-resized"
    padding: Annotated[int, Ge(0)] = 0  # black pixels added on each side before crop: random
    flip: bool = True  # in training, mirror left to right with probability 1/2
    auto: Policy | None = None  # in training, AutoAugment
    augmix: AugMix | None = None  # in training, chains of operations mixed with the image; {} is the paper's
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's weights expect it
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    workers: Annotated[int, Ge(0)] = 4  # processes that read images, for each part; 0 reads in the main process

    def __post_init__(self) -> None:
        if self.validation and self.validation_folder is not None:
            raise ValueError("validation and validation_folder exclude each other; keep one")
        if self.auto is not None and self.augmix is not None:
            raise ValueError("auto: augmix is set as well; keep one of them")
        if self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}; make it at least as large")

    def load(self, seed: int) -> DataSet:
        """The set; files are listed now and read when they are served.  Raises DataError if folders or classes lack."""
        parts = {name: _listed(self, name) for name in (self.train, self.test, self.validation_folder) if name}
        train, test = parts[self.train][0], parts[self.test][0]
        held_out = parts[self.validation_folder][0] if self.validation_folder is not None else None
        for name, (part, _) in parts.items():
            for one, other, lacks in ((train, part, name), (part, train, self.train)):
                missing = [known for known in one.classes if known not in other.classes]
                if missing:
                    raise DataError(
                        f"{self.root}: {self.train} and {name} differ in the classes {shortened(missing)}, which "
                        f"{lacks} lacks; give both the same folders of classes"
                    )
        kept, held = partition(len(train.paths), self)
        if len(held):
            held_out = train.take(held)
        train = train.take(kept)
        train = replace(train, labels=corrupt(train.labels, self.label_noise, len(train.classes), seed))
        plain, augmented = self._plain(), self._augmented()
        normalization = Normalization(self.mean, self.std)
        splits = (
            FileSplit(train, normalization, self.workers, plain, augmented),
            FileSplit(held_out, normalization, self.workers, plain, plain) if held_out is not None else None,
            FileSplit(test, normalization, self.workers, plain, plain),
        )
        return DataSet(
            *splits,
            task="classification",
            outputs=len(train.classes),
            input_shape=(3, self.size, self.size),
            mean=self.mean,
            std=self.std,
            scaled=(True,),
            of_bytes=(True,),
            classes=tuple(train.classes),
            fingerprint=digest(*(split and split.fingerprint for split in splits)),
            notes=tuple(note for _, notes in parts.values() for note in notes),
        )

    def _plain(self) -> "v2.Transform":
        from torchvision.transforms import v2  # a second or more, which other data sets should not wait for

        return v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.size), v2.PILToTensor()])

    def _augmented(self) -> "v2.Transform":
        from torchvision.transforms import AutoAugmentPolicy, v2

        crops = {
            "random-resized": [v2.RandomResizedCrop(self.size)],
            "random": [v2.Resize(self.resize), v2.RandomCrop(self.size, self.padding)],
            "center": [v2.Resize(self.resize), v2.CenterCrop(self.size)],
        }
        flips = [v2.RandomHorizontalFlip()] if self.flip else []
        automatic = [] if self.auto is None else [v2.AutoAugment(AutoAugmentPolicy(self.auto))]
        mixed = self.augmix
        last = (
            []
            if mixed is None
            else [v2.AugMix(math.ceil(mixed.severity), mixed.width, mixed.depth or -1, all_ops=False)]
        )
        return v2.Compose([*crops[self.crop], *flips, v2.PILToTensor(), *automatic, *last])


@dataclass(frozen=True)
class Images:
    """Files of a part with their labels (N,)."""

    folder: Path
    classes: list[str]
    paths: list[str]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> "Images":
        return replace(self, paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])

    def target(self, index: int) -> Tensor:
        return self.labels[index]

    def identity(self) -> tuple[object, ...]:
        return sizes(self.folder, self.paths), self.labels


def _listed(options: ImageFolder, name: str) -> tuple[Images, list[str]]:
    """The images of a part, with notes on what is left out.  Raises DataError as ImageFolder.load does."""
    folder = at_home(options.root) / name
    advice = "check data.root, and data.train and data.test"
    with reading(folder, "a folder with one folder of images for each class", advice):
        entries = list(os.scandir(folder))
        classes = sorted(entry.name for entry in entries if entry.is_dir())
        files = [sorted(_files(str(folder / name)), key=os.path.split) for name in classes]
    images = [[path for path in paths if path.lower().endswith(ENDINGS)] for paths in files]
    empty = [name for name, paths in zip(classes, images, strict=True) if not paths]
    if empty or len(classes) < 2:
        what = f"no image of the classes {shortened(empty)}" if empty else f"{len(classes)} folders of classes"
        raise DataError(f"{folder}: {what}; give a folder for each of two classes or more, with {', '.join(ENDINGS)}")
    given = [entry.path for entry in entries if not entry.is_dir()] + [path for paths in files for path in paths]
    left_out = [path for path in set(given).difference(*images) if not Path(path).name.startswith(".")]
    notes = []
    if left_out:
        example = os.fsencode(min(left_out)).decode(errors="replace")  # names need not be text, reports do
        notes.append(f"{folder}: {len(left_out)} files are left out, such as {example}")
    paths = [path for paths in images for path in paths]
    labels = torch.tensor([label for label, paths in enumerate(images) for _ in paths])
    order = torch.randperm(len(paths), generator=generator("folder order", options.split_seed))
    return Images(folder, classes, paths, labels).take(order), notes


def _files(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """All files below a folder, behind links too.  Raises DataError for links that lead round in a circle."""
    place = os.path.realpath(folder)
    if place in above:
        raise DataError(f"{folder}: a link to a folder that it lies in itself; remove it")
    for entry in list(os.scandir(folder)):
        if entry.is_dir():
            yield from _files(entry.path, (*above, place))
        else:
            yield entry.path
