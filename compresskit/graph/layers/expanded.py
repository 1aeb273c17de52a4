"""A layer written as products of factors, for training: one module of our own, which checkpoints hold as one layer."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compresskit.numerics.expansion.composition import Order, Shape, cheapest_order, contract, to_kernel, to_weight

Factor = tuple[int, tuple[int, ...]]  # outputs of all groups together, and taps
Branch = tuple[Factor, ...]  # factors one behind the other, the first one first
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
MODES = ("online", "sequential")

_LAYERS: dict[str, tuple[type[nn.Module], Callable[..., Tensor]]] = {
    "Linear": (nn.Linear, functional.linear),
    "Conv1d": (nn.Conv1d, functional.conv1d),
    "Conv2d": (nn.Conv2d, functional.conv2d),
    "Conv3d": (nn.Conv3d, functional.conv3d),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # by sides of the kernel


def kernel_shapes(in_channels: int, groups: int, branch: Branch) -> list[Shape]:
    """Of the factors of a branch, as `numerics.expansion` has them."""
    inputs = [in_channels, *(outputs for outputs, _ in branch[:-1])]
    return [
        (groups, outputs // groups, *taps, mid // groups) for mid, (outputs, taps) in zip(inputs, branch, strict=True)
    ]


class Expanded(nn.Module):
    """A linear layer or convolution whose weight is the sum over branches of the products of their factors.

    kind: of the compact layer; in_channels to padding_mode: its options (those of a linear layer have no kernel).
    branches: what it is made of; taps of a branch that are fewer than the kernel's lie in its middle.
    biased: every factor of the first branch has a bias; without it none has.
    mode "online": the factors are multiplied into one weight, and one layer runs. "sequential": the factors run one
    after another, the padding on the input, the stride on the last one with several taps (on the middle one, where none
    has). Both are the same function with the same gradients. nonlinear: a ReLU between factors, which only runs one
    after another and has no compact layer. norms: a batch norm behind each branch of a convolution, which only runs
    sequentially, too; the compact layer is that of eval mode, and has a bias.
    Source: ExpandNets, sections 3.1 to 3.3; norms: Ding et al. 2019 (ACNet).
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        branches: Sequence[Branch],
        biased: bool = True,
        kernel_size: tuple[int, ...] = (),
        stride: tuple[int, ...] = (),
        padding: tuple[int, ...] | str = (),
        dilation: tuple[int, ...] = (),
        groups: int = 1,
        padding_mode: str = "zeros",
        mode: str = "online",
        nonlinear: bool = False,
        norms: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.in_channels, self.out_channels = kind, in_channels, out_channels
        self.branches, self.biased = tuple(branches), biased
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.groups, self.padding_mode = groups, padding_mode
        self.mode, self.nonlinear, self.norms = mode, nonlinear, norms
        self.factors = nn.ModuleList(
            self._layer(inputs, outputs, taps, bias=biased and number == 0)
            for number, branch in enumerate(self.branches)
            for inputs, (outputs, taps) in zip(self._inputs(branch), branch, strict=True)
        )
        norm = _NORMS[len(kernel_size)]
        self.branch_norms = nn.ModuleList(norm(out_channels) for _ in self.branches if norms)
        self.product: tuple[Tensor, Tensor | None] | None = None  # what to use instead of forming it: see training
        self._orders: list[Order] = [cheapest_order(shapes) for shapes in self.kernel_shapes()]
        self.check()

    def check(self) -> None:
        """Raises ValueError for a mode that there is not, or that nonlinear factors or batch norms cannot run in."""
        if self.mode not in MODES or self.kind not in _LAYERS:
            raise ValueError(f"Expanded takes mode {MODES} and kind {tuple(_LAYERS)}, given {self.mode}, {self.kind}")
        if self.nonlinear and self.mode == "online":
            raise ValueError("factors with activations between them have no product; use mode: sequential")

        if self.norms and (self.nonlinear or self.mode == "online"):
            raise ValueError("branches with batch norms run as they are; use mode: sequential, without nonlinear")

    def forward(self, input: Tensor) -> Tensor:  # called so by the layers that it stands for
        if self.mode == "sequential":
            return self._sequential(input)
        weight, bias = self.contracted() if self.product is None else self.product
        return self._run(self._padded(input) if self.padding_mode != "zeros" else input, weight, bias)

    def contracted(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the compact layer, in full precision even where a layer would run in less (autocast).

        In bfloat16 a step of a ResNet-18 would take 0.67 of the time, and trained nets were worse in three of three
        seeds. Raises ValueError where activations stand between the factors.
        """
        if self.nonlinear:
            raise ValueError("factors with activations between them have no product")
        kernels, biases = [], []
        norms = self.branch_norms if self.norms else [None] * len(self.branches)
        device = next(self.parameters()).device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            for factors, order, norm in zip(self.by_branch(), self._orders, norms, strict=True):
                weights = [to_kernel(factor.weight, self.groups) for factor in factors]
                kernel, bias = contract(weights, [factor.bias for factor in factors], order)
                if norm is not None:
                    kernel, bias = _through_norm(kernel, bias, norm)
                kernels.append(self._centred(kernel))
                biases += [] if bias is None else [bias]
            return to_weight(sum(kernels[1:], kernels[0])), sum(biases[1:], biases[0]) if biases else None

    def compact(self) -> Layer:
        """The layer that this one stands for, with the contracted weight, in the same mode, type and place."""
        with torch.no_grad():
            weight, bias = self.contracted()
        taps = self.kernel_size
        layer: Layer = self._layer(self.in_channels, self.out_channels, taps, bias=bias is not None, whole=True)
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        layer.train(self.training)
        return layer

    def kernel_shapes(self) -> list[list[Shape]]:
        """Of the factors of each branch, as `numerics.expansion` has them."""
        return [kernel_shapes(self.in_channels, self.groups, branch) for branch in self.branches]

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.in_channels}, {self.out_channels}, mode={self.mode}"

    def _inputs(self, branch: Branch) -> list[int]:
        return [self.in_channels, *(outputs for outputs, _ in branch[:-1])]

    def by_branch(self) -> list[list[Any]]:
        """The factors of each branch."""
        factors = iter(self.factors)
        return [[next(factors) for _ in branch] for branch in self.branches]

    def _layer(self, inputs: int, outputs: int, taps: tuple[int, ...], *, bias: bool, whole: bool = False) -> Any:
        """A layer as torch makes and draws it: a factor, or, if `whole`, the compact layer with all its options."""
        cls = _LAYERS[self.kind][0]
        if cls is nn.Linear:
            return nn.Linear(inputs, outputs, bias)
        if not whole:
            return cls(inputs, outputs, taps, dilation=self.dilation, groups=self.groups, bias=bias)
        options = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
        return cls(inputs, outputs, taps, bias=bias, **options)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        call = _LAYERS[self.kind][1]
        if self.kind == "Linear":
            return call(x, weight, bias)
        padding = self.padding if self.padding_mode == "zeros" else 0
        return call(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _sequential(self, x: Tensor) -> Tensor:
        x = self._padded(x)
        pairs = zip(self.branches, self.by_branch(), strict=True)
        outputs = [self._chain(self._cropped(x, branch), branch, factors) for branch, factors in pairs]
        if self.norms:
            outputs = [norm(output) for norm, output in zip(self.branch_norms, outputs, strict=True)]
        return sum(outputs[1:], outputs[0])

    def _chain(self, x: Tensor, branch: Branch, factors: list[Any]) -> Tensor:
        if self.kind == "Linear":
            for number, factor in enumerate(factors):
                x = functional.linear(self._activated(x, number), factor.weight, factor.bias)
            return x
        call = _LAYERS[self.kind][1]
        several = [number for number, (_, taps) in enumerate(branch) if prod(taps) > 1]
        strided = several[-1] if several else len(branch) // 2
        for number, factor in enumerate(factors):
            stride = self.stride if number == strided else 1
            x = self._activated(x, number)
            x = call(x, factor.weight, factor.bias, stride, 0, self.dilation, self.groups)
        return x

    def _activated(self, x: Tensor, number: int) -> Tensor:
        return functional.relu(x) if self.nonlinear and number > 0 else x

    def _margins(self) -> list[tuple[int, int]]:
        """Padding before and behind in each dimension."""
        if self.padding == "valid":
            return [(0, 0)] * len(self.kernel_size)
        if self.padding == "same":  # as torch does it: what is left over goes behind
            whole = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return [(total // 2, total - total // 2) for total in whole]
        return [(int(p), int(p)) for p in self.padding]

    def _padded(self, x: Tensor) -> Tensor:
        amounts = [amount for margin in reversed(self._margins()) for amount in margin]
        if not any(amounts):
            return x
        return functional.pad(x, amounts, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _missing(self, taps: Sequence[int]) -> list[tuple[int, int]]:
        """Taps that a kernel of so many lacks before and behind in each dimension."""
        lacking = [k - t for k, t in zip(self.kernel_size, taps, strict=True)]
        return [(n // 2, n - n // 2) for n in lacking]

    def _centred(self, kernel: Tensor) -> Tensor:
        """The kernel (groups, out, *taps, in) with zeros around it up to the size of the whole."""
        missing = self._missing(kernel.shape[2:-1])
        amounts = [0, 0, *(n for pair in reversed(missing) for n in pair)]
        return functional.pad(kernel, amounts) if any(amounts) else kernel

    def _cropped(self, x: Tensor, branch: Branch) -> Tensor:
        """The part of the padded input that a branch with fewer taps sees."""
        taps = [1 + sum(t - 1 for t in each) for each in zip(*(taps for _, taps in branch), strict=True)]
        for dim, ((before, behind), dilation) in enumerate(zip(self._missing(taps), self.dilation, strict=True), 2):
            x = x.narrow(dim, before * dilation, x.shape[dim] - (before + behind) * dilation)
        return x


def _through_norm(kernel: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """A branch (groups, out, *taps, in) with the batch norm behind it, as it is in eval mode.

    With s = gamma / sqrt(var + eps): s K and s (b - mean) + beta.  Source: Ding et al. 2019 (ACNet).
    """
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - scale * (norm.running_mean if bias is None else norm.running_mean - bias)
    return kernel * scale.view(*kernel.shape[:2], *[1] * (kernel.ndim - 2)), shift
