"""U-Net (Ronneberger, Fischer and Brox 2015), with padding, so that every pixel of the input gets a class."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from compresskit.errors import RecipeError
from compresskit.models.parts.sequences import named_sequence
from compresskit.options import option


@option
class UNet:
    """Double 3x3 convolutions on a contracting and an expansive path, joined at each size, and a 1x1 head."""

    kind: Literal["unet"] = "unet"
    width: Annotated[int, Gt(0)] = 64  # channels at full size; they double each time the size is halved
    depth: Annotated[int, Gt(0)] = 4  # times that the size is halved
    batch_norm: bool = True  # behind each convolution; the original has none

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Layers down1.conv1 ..., bottom, up1.conv1 ... and head. Raises RecipeError for sizes not to be halved."""
        step = 2**self.depth
        if len(input_shape) != 3 or any(side % step for side in input_shape[1:]):
            raise RecipeError(
                f"model: unet of depth {self.depth} takes images of sides that are multiples of {step}, the data's "
                f"have shape {input_shape}; change data.size or model.depth"
            )
        return _UNet(input_shape[0], outputs, self.width, self.depth, self.batch_norm)


class _UNet(nn.Module):
    def __init__(self, channels: int, outputs: int, width: int, depth: int, norm: bool) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.pool = nn.MaxPool2d(2)
        for level, (inside, outside) in enumerate(zip([channels, *widths], widths[:-1], strict=False), 1):
            self.add_module(f"down{level}", _double(inside, outside, norm))
        self.bottom = _double(widths[-2], widths[-1], norm)
        for level in range(depth, 0, -1):
            self.add_module(f"grow{level}", nn.ConvTranspose2d(widths[level], widths[level - 1], 2, stride=2))
            self.add_module(f"up{level}", _double(widths[level], widths[level - 1], norm))
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in range(1, self.depth + 1):
            x = self.get_submodule(f"down{level}")(x)
            kept.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for level in range(self.depth, 0, -1):
            x = torch.cat([kept.pop(), self.get_submodule(f"grow{level}")(x)], 1)
            x = self.get_submodule(f"up{level}")(x)
        head: Tensor = self.head(x)
        return head


def _double(inside: int, outside: int, norm: bool) -> nn.Sequential:
    layers: dict[str, nn.Module] = {}
    for number, channels in ((1, inside), (2, outside)):
        layers[f"conv{number}"] = nn.Conv2d(channels, outside, 3, padding=1)
        if norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(outside)
        layers[f"act{number}"] = nn.ReLU()
    return named_sequence(layers)
