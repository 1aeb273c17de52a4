"""What a network does with one sample: eval mode for a while, and the shape of every value."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each submodule gets its own mode back after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def node_shapes(network: fx.GraphModule, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor-valued node by its name, batch dimension (1) included.

    input_shape: of one sample. The network runs in eval mode on zeros, on the device and in the type of its parameters;
    its mode is left as it was.
    """
    parameter = next(network.parameters(), torch.empty(0))
    recorder = _ShapeRecorder(network)
    with torch.no_grad(), evaluating(network):
        recorder.run(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
    return recorder.shapes
