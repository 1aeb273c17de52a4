"""Every model that a recipe can name by its `kind`."""

from compresskit.models.factory import Factory
from compresskit.models.images.densenet import DenseNet
from compresskit.models.images.mobilenet import MobileNet, MobileNetV2
from compresskit.models.images.resnet import ResNet, WideResNet
from compresskit.models.images.vgg import VGG
from compresskit.models.plain.convnet import ConvNet
from compresskit.models.plain.fnn import FNN
from compresskit.models.plain.lenet import LeNet5, LeNet300100
from compresskit.models.plain.lipconvnet import LipConvNet
from compresskit.models.plain.mlp import MLP
from compresskit.models.plain.smallnet import SmallNet
from compresskit.models.plain.vanilla_cnn import VanillaCNN
from compresskit.models.scenes.unet import UNet
from compresskit.models.scenes.yolo_lite import YoloLite
from compresskit.models.timm_zoo import Timm
from compresskit.models.torchvision_zoo import Torchvision

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
    "timm": Timm,
    "factory": Factory,
}
