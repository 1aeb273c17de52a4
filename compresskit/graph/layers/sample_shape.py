"""The shape of samples that a graph was made for, where it may be written into it."""

from collections.abc import Sequence

from torch import Tensor, nn


class SampleShape(nn.Module):
    """Passes a batch of samples of this shape on; others raise a ValueError, before a reshape makes nonsense."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"samples of shape {tuple(x.shape[1:])} were given; this network's graph was made for {self.shape}: "
                "bring the model in again with data of the other shape"
            )
        return x

    def extra_repr(self) -> str:
        return f"shape={self.shape}"
