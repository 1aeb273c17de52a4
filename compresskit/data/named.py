"""Sets that torchvision reads from a folder of the user, and can download."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from compresskit.data.dataset import DataSet
from compresskit.data.memory import Examples, InMemory, assemble
from compresskit.data.reading.regular import at_home, reading
from compresskit.data.stored.normalization import Normalization
from compresskit.errors import DataError
from compresskit.options import option

# `measure` over the full training sets; those of CIFAR-100 as published at https://github.com/weiaicunzai/pytorch-cifar100
MNIST_NORMALIZATION = Normalization((0.1306604762738429,), (0.30810780385646264,))
FASHION_MNIST_NORMALIZATION = Normalization((0.2860405969887955,), (0.3530242445149226,))
CIFAR10_NORMALIZATION = Normalization(
    (0.49139967861519607, 0.48215840839460783, 0.44653091444546567),
    (0.247032232463282, 0.2434851280000555, 0.2615878417279645),
)
CIFAR100_NORMALIZATION = Normalization(
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)


@option
class NamedSet(InMemory):
    """Options of the sets that torchvision names."""

    root: str = "data"  # folder that holds the set in torchvision's layout, or receives it; `~` is the home folder
    download: bool = False  # fetch the set when it is not there


@option
class MNIST(NamedSet):
    """Handwritten digits: 60,000 training and 10,000 test images of 1 x 28 x 28."""

    kind: Literal["mnist"] = "mnist"

    def load(self, seed: int) -> DataSet:
        return _load(self, "MNIST", 10, MNIST_NORMALIZATION, seed)


@option
class FashionMNIST(NamedSet):
    """Articles of clothing: 60,000 training and 10,000 test images of 1 x 28 x 28."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"

    def load(self, seed: int) -> DataSet:
        return _load(self, "FashionMNIST", 10, FASHION_MNIST_NORMALIZATION, seed)


@option
class CIFAR10(NamedSet):
    """Photographs of 10 classes: 50,000 training and 10,000 test images of 3 x 32 x 32."""

    kind: Literal["cifar10"] = "cifar10"

    def load(self, seed: int) -> DataSet:
        return _load(self, "CIFAR10", 10, CIFAR10_NORMALIZATION, seed)


@option
class CIFAR100(NamedSet):
    """Photographs of 100 classes: 50,000 training and 10,000 test images of 3 x 32 x 32."""

    kind: Literal["cifar100"] = "cifar100"

    def load(self, seed: int) -> DataSet:
        return _load(self, "CIFAR100", 100, CIFAR100_NORMALIZATION, seed)


def _load(options: NamedSet, name: str, classes: int, normalization: Normalization, seed: int) -> DataSet:
    (train, names), (test, _) = (_read(options, name, classes, train=train) for train in (True, False))
    if train.shape != test.shape:
        raise DataError(
            f"{options.root}: {name} holds images of {train.shape} to train on and of {test.shape} to test on; fetch "
            "the set anew"
        )
    return assemble(
        options, train, test, task="classification", outputs=classes, seed=seed, normalization=normalization,
        classes=names,
    )  # fmt: skip


def _read(options: NamedSet, name: str, classes: int, *, train: bool) -> tuple[Examples, list[str]]:
    """A part, and the names of the classes."""
    from torchvision import datasets  # a second or more, which other data sets should not wait for

    reader = getattr(datasets, name)
    root = at_home(options.root)
    remedy = (
        "check the network and that the folder can be written"
        if options.download
        else f"set data.download: true, or data.root to the folder that holds {_layout(reader)}"
    )
    with reading(root, f"torchvision's {name}", remedy):
        found = reader(root, train=train, download=options.download)
        inputs, labels = _channels_first(found.data), torch.as_tensor(found.targets)
    which = f"{root}: the {'training' if train else 'test'} part of {name}"
    if not len(inputs) == len(labels) > 0:
        raise DataError(f"{which} holds {len(inputs)} images and {len(labels)} labels; fetch the set anew")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise DataError(
            f"{which} has {int(wrong.sum())} labels that are no classes, the first {labels[first]} at [{first}]; "
            f"classes are 0 to {classes - 1}; fetch the set anew"
        )
    return Examples(inputs, labels), list(map(str, getattr(found, "classes", ())))


def _layout(reader: Any) -> str:
    return getattr(reader, "base_folder", f"{reader.__name__}/raw")


def _channels_first(images: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """torchvision holds the MNISTs as tensors (N, H, W) and the CIFARs as arrays (N, H, W, C)."""
    images = torch.as_tensor(images)
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
