"""Every model that a recipe can name by its `kind`."""

from compresskit.models.convnet import ConvNet
from compresskit.models.densenet import DenseNet
from compresskit.models.factory import Factory
from compresskit.models.fnn import FNN
from compresskit.models.lenet import LeNet5, LeNet300100
from compresskit.models.lipconvnet import LipConvNet
from compresskit.models.mlp import MLP
from compresskit.models.mobilenet import MobileNet, MobileNetV2
from compresskit.models.resnet import ResNet, WideResNet
from compresskit.models.smallnet import SmallNet
from compresskit.models.torchvision_zoo import Torchvision
from compresskit.models.unet import UNet
from compresskit.models.vanilla_cnn import VanillaCNN
from compresskit.models.vgg import VGG
from compresskit.models.yolo_lite import YoloLite

MODELS: dict[str, type] = {
    "mlp": MLP,
    "lenet-300-100": LeNet300100,
    "lenet-5": LeNet5,
    "convnet": ConvNet,
    "smallnet": SmallNet,
    "resnet": ResNet,
    "wide-resnet": WideResNet,
    "densenet": DenseNet,
    "vgg": VGG,
    "mobilenet": MobileNet,
    "mobilenet-v2": MobileNetV2,
    "fnn": FNN,
    "vanilla-cnn": VanillaCNN,
    "lipconvnet": LipConvNet,
    "yolo-lite": YoloLite,
    "unet": UNet,
    "torchvision": Torchvision,
    "factory": Factory,
}
