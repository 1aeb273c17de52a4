"""Every model that a recipe can name by its `kind`."""

from compresskit.models.convnet import ConvNet
from compresskit.models.factory import Factory
from compresskit.models.lenet import LeNet5, LeNet300100
from compresskit.models.mlp import MLP
from compresskit.models.torchvision_zoo import Torchvision

MODELS: dict[str, type] = {
    "mlp": MLP,
    "lenet-300-100": LeNet300100,
    "lenet-5": LeNet5,
    "convnet": ConvNet,
    "torchvision": Torchvision,
    "factory": Factory,
}
