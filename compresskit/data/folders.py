"""Image folders: files decoded, cropped and flipped by worker processes, normalised on the device."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import datasets
from torchvision.transforms import v2

from compresskit.data.dataset import AnySet, DataSet, corrupt, digest, generator, partition, shares
from compresskit.data.normalization import Normalization
from compresskit.errors import DataError
from compresskit.options import option

Key = tuple[list[int], list[int] | None]  # images of a batch, and the seeds of their augmentation
Deviation = Annotated[float, Gt(0)]


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
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's weights expect it
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    workers: Annotated[int, Ge(0)] = 4  # processes that read images, for each part; 0 reads in the main process

    def __post_init__(self) -> None:
        if self.validation and self.validation_folder is not None:
            raise ValueError("validation and validation_folder exclude each other; keep one")
        if self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}; make it at least as large")

    def load(self, seed: int) -> DataSet:
        """The set; files are listed now and read when they are served.  Raises DataError if folders or classes lack."""
        train, test = _listed(self, self.train), _listed(self, self.test)
        held_out = _listed(self, self.validation_folder) if self.validation_folder is not None else None
        for name, part in ((self.test, test), (self.validation_folder, held_out)):
            if part is not None and part.classes != train.classes:
                odd = sorted(set(part.classes) ^ set(train.classes))
                raise DataError(f"{self.root}: {self.train} and {name} differ in the classes {', '.join(odd[:5])}")
        kept, held = partition(len(train.paths), self)
        if len(held):
            held_out = train.take(held)
        train = train.take(kept)
        train = train._replace(labels=corrupt(train.labels, self.label_noise, len(train.classes), seed))
        plain, augmented = self._plain(), self._augmented()
        normalization = Normalization(self.mean, self.std)
        splits = (
            FolderSplit(train, normalization, self.workers, plain, augmented),
            FolderSplit(held_out, normalization, self.workers, plain, plain) if held_out is not None else None,
            FolderSplit(test, normalization, self.workers, plain, plain),
        )
        return DataSet(
            *splits,
            task="classification",
            outputs=len(train.classes),
            input_shape=(3, self.size, self.size),
            mean=self.mean,
            std=self.std,
            fingerprint=digest(*(split and split.fingerprint for split in splits)),
        )

    def _plain(self) -> v2.Transform:
        return v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.size), v2.PILToTensor()])

    def _augmented(self) -> v2.Transform:
        crops = {
            "random-resized": [v2.RandomResizedCrop(self.size)],
            "random": [v2.Resize(self.resize), v2.RandomCrop(self.size, self.padding)],
            "center": [v2.Resize(self.resize), v2.CenterCrop(self.size)],
        }
        flips = [v2.RandomHorizontalFlip()] if self.flip else []
        return v2.Compose([*crops[self.crop], *flips, v2.PILToTensor()])


class Images(NamedTuple):
    """Files of a part with their labels (N,)."""

    folder: Path
    classes: list[str]
    paths: list[str]
    labels: Tensor

    def take(self, index: Tensor) -> "Images":
        return self._replace(paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])


def _listed(options: ImageFolder, name: str) -> Images:
    folder = Path(options.root).expanduser() / name
    try:
        found = datasets.ImageFolder(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: not a folder with one folder of images for each class ({error}); check data.root and "
            "data.train, data.test"
        ) from error
    order = torch.randperm(len(found), generator=generator("folder order", options.split_seed))
    paths, labels = zip(*found.samples, strict=True)
    return Images(folder, found.classes, list(paths), torch.tensor(labels)).take(order)


class FolderSplit:
    """Split whose images are files; one loop over it at a time, since the worker processes are kept."""

    def __init__(
        self, images: Images, normalization: Normalization, workers: int, plain: v2.Transform, augmented: v2.Transform
    ) -> None:
        self._images, self._plain = images, plain
        self._reader = _Reader(images.paths, images.labels, plain, augmented)
        self._normalization = normalization
        self._workers = workers
        self._schedule = _Schedule()
        self._loader: DataLoader[Any] | None = None
        files = [Path(path) for path in images.paths]
        listing = [(file.relative_to(images.folder).as_posix(), file.stat().st_size) for file in files]
        self.fingerprint = digest(listing, images.labels, str(plain), str(augmented), normalization)

    def __len__(self) -> int:
        return len(self._reader)

    def sample(self, count: int) -> "FolderSplit":
        """See Split; the stored order is random already."""
        images = self._images.take(torch.arange(min(count, len(self))))
        return FolderSplit(images, self._normalization, self._workers, self._plain, self._plain)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See Split.  Raises DataError for a file that is no image, RuntimeError if a second loop has begun."""
        keys = self._keys(seed, shares(len(self), batch_size, rank, world, drop_last, start))
        self._schedule.keys = keys
        for batch in self._kept_loader(device):
            if self._schedule.keys is not keys:
                raise RuntimeError("a second loop over this image folder began before the first was done")
            if isinstance(batch, str):
                raise DataError(batch)
            images, labels = batch
            images = images.to(device, non_blocking=True)
            yield self._normalization.on(device, images)(images), labels.to(device, non_blocking=True)

    def _keys(self, seed: int | None, positions: Iterable[slice]) -> Iterator[Key]:
        """For each batch the images to read and the seed of each one's augmentation, none for the stored order."""
        if seed is None:
            return ((list(range(share.start, share.stop)), None) for share in positions)
        random = generator("epoch", seed)
        order = torch.randperm(len(self), generator=random)
        seeds = torch.randint(2**32, (len(self),), generator=random)
        return ((order[share].tolist(), seeds[share].tolist()) for share in positions)

    def _kept_loader(self, device: torch.device) -> DataLoader[Any]:
        if self._loader is None:
            self._loader = DataLoader(
                self._reader,
                batch_size=None,  # the schedule names whole batches and the reader stacks them
                sampler=self._schedule,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                pin_memory=device.type == "cuda",
                collate_fn=_as_read,
                generator=torch.Generator(),  # else each loop would draw a seed from torch's global generator
            )
        return self._loader


class _Schedule(Sampler[Key]):
    """Hands the loader the keys of the epoch at hand, so that one set of workers serves them all."""

    keys: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[Key]:
        return self.keys


class _Reader(Dataset[Any]):
    """Decodes and transforms a batch; lives in the workers, and what it returns depends on the key alone."""

    def __init__(self, paths: list[str], labels: Tensor, plain: v2.Transform, augmented: v2.Transform) -> None:
        self._paths = paths
        self._labels = labels
        self._plain = plain
        self._augmented = augmented

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        """Images (N, 3, size, size) uint8 and labels (N,), or the message of a DataError.

        Raised here, it would reach the main process with the worker's traceback in its message.
        """
        indices, seeds = key
        try:
            if seeds is None:
                images = [self._plain(self._decoded(index)) for index in indices]
            else:
                images = [self._drawn(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        except DataError as error:
            return str(error)
        return torch.stack(images), self._labels[indices]

    def _decoded(self, index: int) -> Any:
        try:
            return datasets.folder.default_loader(self._paths[index])
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for some damaged files
            raise DataError(f"{self._paths[index]}: cannot be read as an image ({error}); mend or remove it") from error

    def _drawn(self, index: int, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's global generator
            torch.default_generator.manual_seed(seed)
            changed: Tensor = self._augmented(self._decoded(index))
            return changed


def _as_read(batch: Any) -> Any:
    """In place of torch's conversion, which knows tensors and numbers but not errors."""
    return batch
