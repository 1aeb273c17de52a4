"""Many equal grouped layers, one behind the other, as one module."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from compresskit.graph.layers.grouped import block_product
from compresskit.graph.layers.only_values import only_values
from compresskit.numerics.threads import threads

_LARGE = 1 << 18  # values of a layer, from which on several threads are worth their while
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class GroupedStack(nn.Module):
    """Layers x -> act(W x + b), in which block g of W reads inputs g, g + groups, g + 2 groups, ...

    weight: (layers, features, features / groups), in each layer the rows of block 0, of block 1, ... bias: one for
    each layer and feature, (layers x features,), of one dimension as other biases. activation: tanh or relu.
    It computes what `GroupedLinear` layers do with a shuffle in front of each, in other memory: what layers return lies
    in one block, feature by feature, so that the next one's inputs are strided views of it.
    Source: SAO, section IV-A.
    """

    def __init__(self, features: int, groups: int, layers: int, activation: str = "tanh", bias: bool = True) -> None:
        super().__init__()
        if features % groups or activation not in ACTIVATIONS:
            raise ValueError(
                f"{groups} groups of {features} features, {activation}; tanh or relu and a divisor it takes"
            )
        self.features, self.groups, self.layers, self.activation = features, groups, layers, activation
        self.weight = nn.Parameter(torch.empty(layers, features, features // groups))
        self.bias = nn.Parameter(torch.empty(layers * features)) if bias else None
        self._spare = _Spare()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch draws linear layers."""
        bound = 1 / sqrt(self.features // self.groups)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features) to the same, or with dimensions in between."""
        rows = x.reshape(-1, self.features)
        bias = self.weight.new_zeros(self.layers * self.features) if self.bias is None else self.bias
        y: Tensor
        if torch.compiler.is_exporting():
            y = self._exported(rows, bias)
        elif self._trains_on_the_cpu(rows):
            weight = self.weight.unflatten(1, (self.groups, -1))
            y = _Layers.apply(rows, weight, bias, self.activation, self._spare)
        elif self._needs_one_thread(rows) and only_values(rows, self.weight, bias):
            y = self._values(rows, bias)
        else:
            y = self._one_by_one(rows, bias)
        return y.reshape(x.shape)

    def _exported(self, x: Tensor, bias: Tensor) -> Tensor:
        for weight, own in zip(self.weight, bias.view(self.layers, -1), strict=True):
            blocks = x.unflatten(-1, (-1, self.groups)).transpose(-1, -2)
            x = ACTIVATIONS[self.activation](block_product(blocks, weight.unflatten(0, (self.groups, -1)), own))
        return x

    def _one_by_one(self, x: Tensor, bias: Tensor) -> Tensor:
        value, groups, act = x.t(), self.groups, ACTIVATIONS[self.activation]
        for weight, own in zip(self.weight, bias.view(self.layers, groups, -1, 1), strict=True):
            blocks = value.reshape(len(value) // groups, groups, value.shape[1]).transpose(0, 1)
            value = act(torch.baddbmm(own, weight.view(groups, -1, len(value) // groups), blocks)).view(value.shape)
        return value.t()

    @torch.no_grad()
    def _values(self, x: Tensor, bias: Tensor) -> Tensor:
        """Without gradients and in numpy, between two buffers; weights are read where they lie, so none can be old."""
        layers, groups, (batch, features) = self.layers, self.groups, x.shape
        values = x.new_empty(2, features, batch)
        values[0].copy_(x.t())
        inputs = [part.numpy() for part in _strided(values, groups)]
        outputs = [part.numpy() for part in values.view(2, groups, -1, batch)]
        weights = self.weight.detach().view(layers, groups, -1, features // groups).numpy()
        biases = bias.detach().view(layers, groups, -1, 1).numpy()
        with np.errstate(all="ignore"):  # as torch, which passes on inf and NaN
            for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
                out = outputs[(layer + 1) % 2]
                np.matmul(w, inputs[layer % 2], out=out)
                np.add(out, b, out=out)
                _activate(values[(layer + 1) % 2], self.activation)
        return values[layers % 2].t()

    @staticmethod
    def _needs_one_thread(x: Tensor) -> bool:
        return 0 < x.numel() and (x.numel() < _LARGE or torch.get_num_threads() == 1)

    def _trains_on_the_cpu(self, x: Tensor) -> bool:
        """Where autograd's and the allocator's share of each of many small layers would be most of the time."""
        eager = not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
        plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dtype == self.weight.dtype
        return self.training and torch.is_grad_enabled() and eager and plain and x.numel() > 0

    def extra_repr(self) -> str:
        return f"{self.features}, groups={self.groups}, layers={self.layers}, activation={self.activation}"


class _Spare:
    """Memory of the last step for the next one, which would else be given back, and cleared page by page again."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """Values of no meaning; nobody else has them until `give`."""
        memory, self._memory = self._memory, None
        fits = memory is not None and memory.shape == shape and memory.dtype == like.dtype
        return memory if memory is not None and fits else like.new_empty(shape)

    def give(self, memory: Tensor) -> None:
        self._memory = memory

    def __deepcopy__(self, memo: object) -> "_Spare":
        return _Spare()

    def __getstate__(self) -> dict[str, None]:
        return {"_memory": None}


class _Layers(torch.autograd.Function):
    """All layers at once, forward and backward by hand: each step of each layer is one call that writes in place.

    weight: (L, g, c, d). values: (L, n, B), what layers return; n = g c = g d.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: str, spare: _Spare) -> Tensor:
        (layers, groups, _, _), (batch, features) = weight.shape, x.shape
        values = spare.take(x, layers, features, batch)
        inputs = _strided(x.t().contiguous()[None], groups)[0]
        biases = bias.view(layers, groups, -1, 1)
        blocks, strided = values.view(layers, groups, -1, batch), _strided(values, groups)
        with _few_threads(features * batch):
            for w, b, out, behind in zip(weight, biases, blocks, strided, strict=True):
                torch.baddbmm(b, w, inputs, out=out)
                _activate(out, activation)
                inputs = behind
        ctx.save_for_backward(x, weight, values)
        ctx.activation, ctx.spare = activation, spare
        return values[-1].t().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, values = ctx.saved_tensors
        (layers, groups, _, _), (batch, features) = weight.shape, x.shape
        by_weight, by_bias = (
            torch.empty_like(weight, memory_format=torch.contiguous_format),
            x.new_empty(layers, features),
        )
        inputs = [_strided(x.t().contiguous()[None], groups)[0], *_strided(values, groups)[:-1]]
        before, behind = x.new_empty(features, batch), x.new_empty(features, batch)  # of the activation, of the layer
        # Gradients come block by block, and are read in the order of the inputs that those blocks had
        of_blocks, in_order = before.view(groups, -1, batch), before.view(-1, groups, batch)
        for_inputs = behind.view(groups, -1, batch)
        ordered = values.view(layers, -1, groups, batch).unbind(0)
        incoming = gradient.t().reshape(-1, groups, batch)
        with _few_threads(features * batch):
            for layer in range(layers - 1, -1, -1):
                _activation_backward(incoming, ordered[layer], in_order, ctx.activation)
                torch.bmm(of_blocks, inputs[layer].transpose(1, 2), out=by_weight[layer])
                torch.sum(of_blocks, 2, out=by_bias[layer].view(groups, -1))
                torch.bmm(weight[layer].transpose(1, 2), of_blocks, out=for_inputs)
                incoming = for_inputs.transpose(0, 1)
        ctx.spare.give(values)
        return incoming.reshape(features, batch).t(), by_weight, by_bias.flatten(), None, None


def _few_threads(values: int) -> AbstractContextManager[None]:
    """One thread while layers of so many values are computed, if that is quicker than several that wait for another."""
    return threads(1) if values < _LARGE else nullcontext()


def _strided(values: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Of each of (L, n, B) the inputs of blocks, (g, d, B): block i reads rows i, i + g, i + 2 g, ..."""
    layers, _, batch = values.shape
    return values.view(layers, -1, groups, batch).transpose(1, 2).unbind(0)


def _activate(values: Tensor, activation: str) -> None:
    """In place. numpy's tanh takes a sixth of torch's time, and is as exact to 1.4 units in the last place."""
    if activation == "tanh":
        array = values.numpy()
        np.tanh(array, out=array)
    else:
        values.relu_()


def _activation_backward(gradient: Tensor, values: Tensor, out: Tensor, activation: str) -> None:
    """values: what the activation returned."""
    if activation == "tanh":
        torch.ops.aten.tanh_backward.grad_input(gradient, values, grad_input=out)
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, values, 0, grad_input=out)
