"""Batches that go through a network in parts, whose gradients add up to the batch's before the optimiser's one step."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from compresskit.graph.layers.expanded import Expanded


def micro_batches(inputs: Any, targets: Tensor, largest: int) -> list[tuple[Any, Tensor]]:
    """The batch in parts of `largest` samples at most, whose sizes differ by at most one.

    No part has a single sample, of which a batch norm has no variance, unless all have: three samples stay together
    where `largest` is two. inputs: one tensor or a tuple of them, perhaps V views of all samples, one behind the other,
    of which a part has its own.
    """
    parts = -(-len(targets) // largest)
    if largest > 1:
        parts = max(1, min(parts, len(targets) // 2))
    if parts == 1:
        return [(inputs, targets)]
    pieces = targets.tensor_split(parts)
    if isinstance(inputs, Tensor):
        return list(zip(_split(inputs, len(targets), parts), pieces, strict=True))
    several = zip(*(_split(one, len(targets), parts) for one in inputs), strict=True)
    return list(zip(several, pieces, strict=True))


def _split(inputs: Tensor, samples: int, parts: int) -> list[Tensor]:
    views = inputs.unflatten(0, (-1, samples))
    return [part.flatten(0, 1) for part in views.tensor_split(parts, 1)]


class SharedProducts:
    """The products of expanded layers, formed once for all micro-batches of a step.

    Micro-batches but the last read a copy that gathers their gradients. The last one reads the products themselves:
    its backward pass adds what was gathered, and carries the sum to the factors, once. So the factors' gradients come
    in a single backward pass, where DistributedDataParallel expects them.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = [layer for layer in network.modules() if isinstance(layer, Expanded) and layer.mode == "online"]
        self._products = [layer.contracted() for layer in self._layers]
        for layer, (weight, bias) in zip(self._layers, self._products, strict=True):
            layer.product = _leaf(weight), None if bias is None else _leaf(bias)

    def before_last(self) -> None:
        """To be called before the forward pass of the last micro-batch."""
        for layer, product in zip(self._layers, self._products, strict=True):
            assert layer.product is not None
            for value, leaf in zip(product, layer.product, strict=True):
                if value is not None and leaf is not None and value.requires_grad:
                    value.register_hook(partial(_gathered, leaf))
            layer.product = product

    def release(self) -> None:
        """Lets every layer form its own product again."""
        for layer in self._layers:
            layer.product = None


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _gathered(leaf: Tensor, gradient: Tensor) -> Tensor:
    return gradient if leaf.grad is None else gradient + leaf.grad
