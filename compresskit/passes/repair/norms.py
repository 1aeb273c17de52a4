"""Batch norms whose statistics are estimated again."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import RecipeError
from compresskit.graph.operations import NORMS


def estimate_norms(
    network: fx.GraphModule, batches: Iterable[tuple[Tensor, Tensor]], on_batch: Callable[[], None] = lambda: None
) -> int:
    """Replaces in place means and variances of batch norms by those over all batches; returns how many norms there are.

    Every batch counts alike; one of a single sample behind larger ones is left out, for it has next to no variance. All
    norms are estimated in one pass, each behind those before it as they are in training.
    Raises RecipeError where batches are too small to have a variance.
    """
    norms = [module for module in network.modules() if isinstance(module, NORMS) and module.track_running_stats]
    if not norms:
        return 0
    modes, momenta = [norm.training for norm in norms], [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    counting = [norm.register_forward_pre_hook(_mean_over_calls()) for norm in norms]
    largest = 0
    with torch.no_grad():
        for inputs, _ in batches:
            count = len(inputs[0] if isinstance(inputs, tuple) else inputs)
            if count > 1 or largest <= 1:
                _through_norms(network, inputs, count)
            largest = max(largest, count)
            on_batch()
    for hook in counting:
        hook.remove()
    for norm, mode, momentum in zip(norms, modes, momenta, strict=True):
        norm.momentum = momentum
        norm.train(mode)
    return len(norms)


def _mean_over_calls() -> Callable[[nn.Module, Any], None]:
    """Gives a norm, before its n-th call, the momentum 1/n, which makes its statistics plain means over the calls.

    So does `momentum = None`, for which torch reads the number of calls from the device each time.
    """
    calls = itertools.count(1)

    def weigh(norm: nn.Module, inputs: Any) -> None:
        norm.momentum = 1 / next(calls)  # type: ignore[assignment]

    return weigh


def _through_norms(network: fx.GraphModule, inputs: Any, count: int) -> None:
    try:
        network(inputs)
    except ValueError as error:  # torch's word for one value of a channel
        if count > 1:
            raise
        raise RecipeError(
            "norms: the mean and variance of a batch norm cannot be estimated from batches of one sample; raise "
            "moments.batch_size, give more data, or set norms: false"
        ) from error
