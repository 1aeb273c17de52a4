"""What networks for images are made of."""

from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.sequences import named_sequence


def check_images(kind: str, input_shape: tuple[int, ...], smallest: int = 1) -> None:
    """Raises RecipeError where the data are no images (C, H, W), or smaller than that."""
    if len(input_shape) != 3:
        raise RecipeError(f"model: {kind} takes images (C, H, W), the data's have shape {input_shape}")
    if min(input_shape[1:]) < smallest:
        raise RecipeError(f"model: {kind} takes images of {smallest} pixels a side at least, given {input_shape}")


def padded(input_shape: tuple[int, ...], smallest: int) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    """Zeros on both sides of images smaller than that, nothing for others, and the shape that the images have then."""
    channels, *size = input_shape
    height, width = (max(0, smallest - positions) for positions in size)
    if height == width == 0:
        return {}, input_shape
    pad = nn.ZeroPad2d((width // 2, width - width // 2, height // 2, height - height // 2))
    return {"pad": pad}, (channels, size[0] + height, size[1] + width)


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> dict[str, nn.Module]:
    """A convolution that keeps the size but for its stride, without bias, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return {"conv": conv, "norm": nn.BatchNorm2d(outputs)}


def conv_block(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """`conv_norm` with an activation: conv, norm, act."""
    return named_sequence(conv_norm(inputs, outputs, kernel, stride, groups) | {"act": activation()})


def head(channels: int, outputs: int) -> dict[str, nn.Module]:
    """The mean over positions and a linear layer."""
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(channels, outputs)}
