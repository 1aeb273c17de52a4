"""How the images of a batch lie in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compresskit.data.dataset import DataSet, Source, Split
from compresskit.errors import RecipeError
from compresskit.shapes import shapes_of

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of dimensions of a batch


@dataclass(frozen=True)
class ChannelsLast:
    """A split whose batches have the values of a position side by side, all channels; shapes and values are the same.

    Convolutions keep to the layout of what they read, so that one copy at the network's door serves all its layers.
    """

    split: Split

    @property
    def fingerprint(self) -> str:
        """The split's: what is served is the same."""
        return self.split.fingerprint

    @property
    def in_memory(self) -> bool:
        """See Split."""
        return self.split.in_memory

    def __len__(self) -> int:
        return len(self.split)

    def sample(self, count: int) -> "ChannelsLast":
        """See Split."""
        return ChannelsLast(self.split.sample(count))

    def batches(self, batch_size: int, device: torch.device, **how: Any) -> Iterator[tuple[Any, Any]]:
        """See Split."""
        for inputs, targets in self.split.batches(batch_size, device, **how):
            yield pytree.tree_map_only(Tensor, _laid_out, inputs), targets


def load_set(source: Source, seed: int) -> DataSet:
    """The set that a recipe names, its batches laid out as it says. Raises RecipeError where none has such a layout."""
    data = source.load(seed)
    if not source.channels_last:
        return data
    shapes = shapes_of(data.input_shape)
    if not any(len(shape) + 1 in LAYOUTS for shape in shapes):
        raise RecipeError(
            f"data.channels_last: it is for images (channels, height, width) and volumes, and inputs are "
            f"{' and '.join(map(str, shapes))}; leave it out"
        )
    validation = None if data.validation is None else ChannelsLast(data.validation)
    return replace(data, train=ChannelsLast(data.train), validation=validation, test=ChannelsLast(data.test))


def _laid_out(inputs: Tensor) -> Tensor:
    layout = LAYOUTS.get(inputs.dim())
    return (
        inputs if layout is None else inputs.to(memory_format=layout)
    )  # `contiguous` leaves a single channel as it is
