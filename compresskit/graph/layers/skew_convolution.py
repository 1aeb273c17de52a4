"""A convolution that is orthogonal whatever its weights are: one module of our own, which checkpoints hold."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compresskit.numerics.orthogonal.skew import bounded, exponential, skew

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


class SkewConvolution(nn.Module):
    """x -> exp(L) x + b, where L is the convolution with the skew-symmetric kernel V[i, j, a] - V[j, i, -a].

    weight: V, (c, c, *kernel_size) with c = max(in_channels, out_channels); fewer inputs are filled up with zeros, and
    of more outputs the first are kept, so that all singular values are 1. kernel_size: odd. The map keeps its size;
    padding_mode: zeros or circular. terms: of the exponential's series, each a convolution; see
    `numerics.skew.exponential` for what is left out.
    Source: skew-orthogonal convolutions, Singla and Feizi 2021, which SAO's LipConvNet begins with.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        padding_mode: str = "zeros",
        terms: int = 10,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if any(k % 2 == 0 for k in kernel_size):
            raise ValueError(f"a skew-symmetric kernel has a middle, so odd taps; given {kernel_size}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.padding_mode, self.terms = tuple(kernel_size), padding_mode, terms
        channels = max(in_channels, out_channels)
        self.weight = nn.Parameter(torch.empty(channels, channels, *kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """V from N(0, 1 / inputs of an output), so that L has a spectral norm of about 1 once it is bounded; b = 0."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:  # called so by the layers that it stands for
        kernel = bounded(skew(self.weight))
        channels, dims = len(kernel), len(self.kernel_size)
        missing = channels - self.in_channels
        x = functional.pad(input, (0, 0) * dims + (0, missing)) if missing else input
        y = exponential(x, lambda value: self._convolved(value, kernel), self.terms)[:, : self.out_channels]
        return y if self.bias is None else y + self.bias.view(-1, *(1,) * dims)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, terms={self.terms}"

    def _convolved(self, x: Tensor, kernel: Tensor) -> Tensor:
        convolution, margins = _CONVOLUTIONS[len(self.kernel_size)], [k // 2 for k in self.kernel_size]
        if self.padding_mode == "zeros":
            return convolution(x, kernel, padding=margins)
        return convolution(
            functional.pad(x, [m for m in reversed(margins) for _ in range(2)], self.padding_mode), kernel
        )
