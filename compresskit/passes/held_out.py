"""Networks judged by how far their outputs on held-out inputs are from those of the original."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from compresskit.graph.shapes import evaluating
from compresskit.numerics.outputs import Spread, doubled, tensors_of

ROOM = 2**28  # bytes
Batches = Callable[[], Iterable[Any]]  # of inputs, the same each time
Divergence = Callable[[Any, Any], Tensor]  # (outputs, the original's) -> mean over the batch


class HeldOut:
    """Judges networks by the mean divergence of their outputs from those of `network`, on the same batches each time.

    What `network` gives is kept for the next one while it takes no more than `room` bytes, and computed again behind.
    """

    def __init__(self, network: fx.GraphModule, batches: Batches, divergence: Divergence, room: int = ROOM) -> None:
        self._network, self._batches, self._divergence = network, batches, divergence
        self._kept, self._room = list[Any](), room

    def __call__(self, candidate: fx.GraphModule) -> float:
        if isinstance(self._divergence, OfVariance):
            self._divergence.measure()  # of batches that may allow one loop at a time
        total, images = torch.zeros((), dtype=torch.float64), 0
        networks = evaluating(self._network, training_outputs=True), evaluating(candidate, training_outputs=True)
        with torch.inference_mode(), networks[0], networks[1]:
            for number, inputs in enumerate(self._batches()):
                expected, count = doubled(self._expected(number, inputs)), samples_in(inputs)
                total = total + self._divergence(doubled(candidate(inputs)), expected) * count
                images += count
        return float(total) / max(images, 1)

    def _expected(self, number: int, inputs: Any) -> Any:
        if number < len(self._kept):
            return self._kept[number]
        found = self._network(inputs)
        size = sum(tensor.nbytes for tensor in tensors_of(found))
        if number == len(self._kept) and size <= self._room:
            self._kept.append(found)
            self._room -= size
        return found


def loss_of(
    candidate: fx.GraphModule, network: fx.GraphModule, batches: Iterable[Tensor], divergence: Divergence
) -> float:
    """The mean divergence of a whole network's outputs from the other's."""
    return HeldOut(network, lambda: batches, divergence, room=0)(candidate)


def samples_in(inputs: Any) -> int:
    """Of a batch: a tensor, or a tuple of them."""
    return len(inputs[0] if isinstance(inputs, tuple) else inputs)


class OfVariance:
    """A divergence of outputs of any structure: the mean over their tensors of the mean squared difference as a share
    of the variance of what `network` gives on all batches, which is measured when it is first needed."""

    def __init__(self, network: fx.GraphModule, batches: Batches) -> None:
        self._network, self._batches = network, batches

    def __call__(self, found: Any, expected: Any) -> Tensor:
        return self.measure().error(found, expected)

    def measure(self) -> Spread:
        """Of all batches; the first call takes a loop over them."""
        return self._spread

    @cached_property
    def _spread(self) -> Spread:
        spread = Spread()
        with torch.inference_mode(), evaluating(self._network, training_outputs=True):
            for inputs in self._batches():
                spread.add(self._network(inputs))
        return spread
