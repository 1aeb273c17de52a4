"""A ResNet whose norms are GroupNorm, for the recipe configs/rivals/resnet18-group-norm.yaml."""

from torch import nn

from compresskit.models.images.resnet import ResNet

SIZE = 8  # channels of a group; batch norms of fewer become one group


def resnet18(width: float, num_classes: int) -> nn.Module:
    """compresskit's ResNet-18 for images of 3 channels, each batch norm replaced by GroupNorm (Wu and He 2018)."""
    network = ResNet(depth=18, width=width).build((3, 32, 32), num_classes)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                setattr(module, name, nn.GroupNorm(max(1, channels // SIZE), channels))
    return network
