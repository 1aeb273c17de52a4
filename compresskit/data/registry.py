"""The data sets that a recipe can name."""

from compresskit.data.arrays import Arrays
from compresskit.data.dataset import Source
from compresskit.data.detection import VocDetection
from compresskit.data.folders import ImageFolder
from compresskit.data.mini import MnistMini
from compresskit.data.named import CIFAR10, CIFAR100, MNIST, FashionMNIST
from compresskit.data.own.factory import Factory
from compresskit.data.segmentation import Cityscapes, VocSegmentation

DATASETS: dict[str, type[Source]] = {
    "mnist-mini": MnistMini,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "image-folder": ImageFolder,
    "voc-detection": VocDetection,
    "arrays": Arrays,
    "voc-segmentation": VocSegmentation,
    "cityscapes": Cityscapes,
    "factory": Factory,
}
