"""Gradients over many batches: of a loss, and of a network's own outputs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.graph.chains import Weighted, weighted
from compresskit.graph.shapes import evaluating
from compresskit.passes.moments import Batches


def mean_gradients(network: fx.GraphModule, batches: Batches, loss: Callable[[Any, Any], Tensor]) -> dict[str, Tensor]:
    """By parameter, of the mean loss over all samples, in eval mode; zeros where the loss does not depend on it.

    loss: (outputs, targets) -> the mean over a batch.
    """
    parameters = dict(network.named_parameters())
    sums, samples = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    with evaluating(network, training_outputs=True):
        for inputs, targets in batches:
            value = loss(network(inputs), targets) * len(targets)
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                total += 0 if gradient is None else gradient
            samples += len(targets)
    return {name: total / samples for name, total in sums.items()}


def curvatures(
    network: fx.GraphModule,
    layers: Sequence[str],
    batches: Batches,
    root: Callable[[Tensor, Tensor], Tensor],
    seed: int,
) -> dict[str, Tensor]:
    """By layer: (G, O/G, O/G) float64, the mean over samples of g g^T summed over positions and calls, where g is the
    gradient of outputs . root(outputs, signs), root held, in the outputs of the layer; G groups of O outputs.

    root: of `numerics.pruning.fisher`; signs are drawn on the CPU by the seed, so that devices agree. Targets of the
    batches are not read. The network is in eval mode.
    """
    draws, made = torch.Generator().manual_seed(seed), list[tuple[str, Tensor]]()

    def seen(layer: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            made.append((layer, output))
            return output.clone()  # what follows may work in place

        return hook

    modules = {layer: weighted(network, layer) for layer in layers}
    hooks = [module.register_forward_hook(seen(layer)) for layer, module in modules.items()]
    sums, samples = {layer: _no_curvature(module) for layer, module in modules.items()}, 0
    try:
        with evaluating(network):
            for inputs, _ in batches:
                outputs = network(inputs)
                signs = torch.randint(2, outputs.shape, generator=draws, dtype=torch.int8).to(outputs) * 2 - 1
                value = (outputs * root(outputs.detach(), signs)).sum()
                found = torch.autograd.grad(value, [output for _, output in made], allow_unused=True)
                for (layer, _), gradient in zip(made, found, strict=True):
                    sums[layer] += 0 if gradient is None else _gram(gradient, modules[layer], len(sums[layer]))
                made.clear()
                samples += len(outputs)
    finally:
        for handle in hooks:
            handle.remove()
    return {layer: total / samples for layer, total in sums.items()}


def _no_curvature(module: Weighted) -> Tensor:
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    size = len(module.weight) // groups
    return module.weight.new_zeros(groups, size, size, dtype=torch.float64)


def _gram(gradient: Tensor, module: Weighted, groups: int) -> Tensor:
    """(groups, O/groups, O/groups) over samples and positions."""
    rows = gradient if isinstance(module, nn.Linear) else gradient.movedim(1, -1)
    each = rows.flatten(0, -2).unflatten(1, (groups, -1)).movedim(1, 0)
    gram: Tensor = each.mT @ each
    return gram.double()
