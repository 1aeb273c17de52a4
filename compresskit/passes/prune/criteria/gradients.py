"""Gradients of a loss over many batches."""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from compresskit.graph.shapes import evaluating
from compresskit.passes.moments import Batches


def mean_gradients(
    network: fx.GraphModule, batches: Batches, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """By parameter, of the mean loss over all samples, in eval mode; zeros where the loss does not depend on it.

    loss: (outputs, targets) -> the mean over a batch.
    """
    parameters = dict(network.named_parameters())
    sums, samples = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    with evaluating(network):
        for inputs, targets in batches:
            value = loss(network(inputs), targets) * len(targets)
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                total += 0 if gradient is None else gradient
            samples += len(targets)
    return {name: total / samples for name, total in sums.items()}
