"""Sets for segmentation: images with a class for each pixel, in the layouts of PASCAL VOC and Cityscapes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from compresskit.data.dataset import AnySet, DataSet, digest, generator, partition
from compresskit.data.files import FileSplit, sizes
from compresskit.data.reading.images import read_mask
from compresskit.data.reading.regular import at_home, reading
from compresskit.data.reading.voc import listed
from compresskit.data.stored.normalization import Normalization
from compresskit.errors import DataError
from compresskit.options import option

if TYPE_CHECKING:
    from torchvision.transforms import v2

IGNORED = 255  # pixels that count neither in training nor in testing
SMALLEST = 0.25  # part of the image that a random crop keeps at least
Side = Annotated[int, Ge(16)]
Deviation = Annotated[float, Gt(0)]


@option
class SegmentationSet(AnySet):
    """Options of the sets for segmentation."""

    root: str = "data"  # `~` is the home folder
    size: tuple[Side, Side]  # height and width that the model sees; images and masks are scaled to it
    flip: bool = True  # in training, mirror left to right with probability 1/2
    crop: bool = False  # in training, cut out a random part of at least a quarter of the image
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    workers: Annotated[int, Ge(0)] = 4  # processes that read images, for each part; 0 reads in the main process

    def _assembled(self, train: "Masked", test: "Masked", classes: int) -> DataSet:
        """Targets are (N, height, width) int64, with IGNORED where no class is given."""
        from torchvision.transforms import v2  # a second or more, which other data sets should not wait for

        if self.label_noise:
            raise DataError("data.label_noise: it replaces labels of whole images; leave it out for segmentation")
        draws = generator("folder order", self.split_seed)
        train, test = (part.take(torch.randperm(len(part), generator=draws)) for part in (train, test))
        kept, held = partition(len(train), self)
        plain, augmented = Pipeline([v2.Resize(self.size)]), Pipeline(self._augmented())
        normalization = Normalization(self.mean, self.std)
        splits = (
            FileSplit(train.take(kept), normalization, self.workers, plain, augmented),
            FileSplit(train.take(held), normalization, self.workers, plain, plain) if len(held) else None,
            FileSplit(test, normalization, self.workers, plain, plain),
        )
        return DataSet(
            *splits,
            task="segmentation",
            outputs=classes,
            input_shape=(3, *self.size),
            mean=self.mean,
            std=self.std,
            scaled=(True,),
            of_bytes=(True,),
            fingerprint=digest(*(split and split.fingerprint for split in splits)),
        )

    def _augmented(self) -> "list[v2.Transform]":
        from torchvision.transforms import v2

        scaled = v2.RandomResizedCrop(self.size, scale=(SMALLEST, 1.0)) if self.crop else v2.Resize(self.size)
        return [scaled, v2.RandomHorizontalFlip()] if self.flip else [scaled]


@option
class VocSegmentation(SegmentationSet):
    """PASCAL VOC's 20 classes and background: root/VOCdevkit/VOC{year}/{JPEGImages,SegmentationClass,ImageSets}."""

    kind: Literal["voc-segmentation"] = "voc-segmentation"
    size: tuple[Side, Side] = (256, 256)
    year: Literal[2007, 2008, 2009, 2010, 2011, 2012] = 2012
    train: Literal["train", "trainval"] = "train"  # file of ImageSets/Segmentation that lists the training images
    test: Literal["val", "test"] = "val"  # of `test`, 2007 alone has masks
    classes: Annotated[int, Ge(2), Le(IGNORED)] = 21  # the background included; larger numbers are not counted

    def __post_init__(self) -> None:
        if self.test == "test" and self.year != 2007:
            raise ValueError(f"test: VOC{self.year} has no masks of `test`; use test: val, or year: 2007")
        if self.test == "val" and self.train == "trainval":
            raise ValueError("test: val is a part of trainval; use train: train")

    def load(self, seed: int) -> DataSet:
        """The set; the borders of objects (255) are not counted. Raises DataError if files lack."""
        return self._assembled(self._listed(self.train), self._listed(self.test), self.classes)

    def _listed(self, part: str) -> "Masked":
        root, folder, names = listed(self.root, self.year, "Segmentation", part)
        images = [str(folder / "JPEGImages" / f"{name}.jpg") for name in names]
        masks = [str(folder / "SegmentationClass" / f"{name}.png") for name in names]
        return Masked(root, images, masks, tuple(range(self.classes)))


@option
class Cityscapes(SegmentationSet):
    """Cityscapes' 19 classes: root/leftImg8bit/{train,val}/CITY and root/gtFine, with the masks of labelIds."""

    kind: Literal["cityscapes"] = "cityscapes"
    size: tuple[Side, Side] = (256, 512)

    def load(self, seed: int) -> DataSet:
        """The set, tested on its validation part. Raises DataError if files lack."""
        from torchvision import datasets

        known = [found for found in datasets.Cityscapes.classes if not found.ignore_in_eval and found.id >= 0]
        ids = tuple(found.id for found in sorted(known, key=lambda found: found.train_id))
        return self._assembled(self._listed("train", ids), self._listed("val", ids), len(ids))

    def _listed(self, part: str, ids: tuple[int, ...]) -> "Masked":
        from torchvision import datasets

        root = at_home(self.root)
        with reading(root, f"Cityscapes' leftImg8bit/{part} and gtFine/{part}", "check data.root"):
            found = datasets.Cityscapes(root, split=part, mode="fine", target_type="semantic")
        pairs = sorted((image, mask) for image, (mask,) in zip(found.images, found.targets, strict=True))
        if not pairs:
            raise DataError(f"{root}: leftImg8bit/{part} holds no images; check data.root")
        return Masked(root, [image for image, _ in pairs], [mask for _, mask in pairs], ids)


@dataclass(frozen=True)
class Masked:
    """Images of a part with the files of their masks. ids: the value in the masks of each class, in their order."""

    folder: Path
    paths: list[str]
    masks: list[str]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> "Masked":
        chosen = index.tolist()
        return replace(self, paths=[self.paths[i] for i in chosen], masks=[self.masks[i] for i in chosen])

    def target(self, index: int) -> Tensor:
        """(height, width) uint8 classes; every value that is no class becomes IGNORED."""
        classes = torch.full((256,), IGNORED, dtype=torch.uint8)
        classes[list(self.ids)] = torch.arange(len(self.ids), dtype=torch.uint8)
        return classes[torch.from_numpy(read_mask(self.masks[index], self.paths[index])).long()]

    def identity(self) -> tuple[object, ...]:
        return sizes(self.folder, self.paths), sizes(self.folder, self.masks), self.ids


class Pipeline:
    """Transforms an image together with its mask."""

    def __init__(self, transforms: "Sequence[v2.Transform]") -> None:
        from torchvision.transforms import v2

        self._transform = v2.Compose([*transforms, v2.PILToTensor()])

    def __str__(self) -> str:
        return str(self._transform)

    def __call__(self, image: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (3, height, width) and int64 (height, width); masks are scaled to the nearest pixel."""
        from torchvision import tv_tensors

        pixels, found = self._transform(image, tv_tensors.Mask(mask[None]))
        return pixels, found.as_subclass(Tensor)[0].long()
