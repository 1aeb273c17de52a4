"""The detector of ExpandNets' experiments."""

from typing import Literal

from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option

BACKBONE = (16, 32, 64, 128, 128)
NECK = 256
STRIDE = 2 ** len(BACKBONE)
SLOPE = 0.1  # of darknet's leaky activation


@option
class YoloLite:
    """Five 3x3 convolutions conv1 to conv5, each with max pooling behind it, then conv6 and a 1x1 head for each cell.

    Source: Huang, Pedoeem and Chen 2018, YOLO-LITE: their best net, trial 3 without batch norm (its
    cfg/tiny-yolov2-trial3-noBatch.cfg). ExpandNets expands conv1 to conv5.
    """

    kind: Literal["yolo-lite"] = "yolo-lite"
    batch_norm: bool = False  # behind conv1 to conv6, which then have no bias

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The map of outputs has a cell for every 32 x 32 pixels: 7 x 7 for the usual 224 x 224.

        outputs: channels of the map, for each anchor 5 + classes.
        Raises RecipeError for data that are no images, or too small ones.
        """
        if len(input_shape) != 3 or min(input_shape[1:]) < STRIDE:
            raise RecipeError(
                f"model: yolo-lite takes images of {STRIDE} x {STRIDE} or more, the data's have shape {input_shape}"
            )
        layers: dict[str, nn.Module] = {}
        channels = input_shape[0]
        for number, width in enumerate((*BACKBONE, NECK), 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=not self.batch_norm)
            if self.batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
            if number <= len(BACKBONE):
                layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels = width
        layers["head"] = nn.Conv2d(channels, outputs, 1)
        return named_sequence(layers)
