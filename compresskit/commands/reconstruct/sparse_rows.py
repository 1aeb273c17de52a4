"""The rival of a reconstructed network at equal bytes: the original with its least weights zero, as sparse rows."""

import copy
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from compresskit.commands.reconstruct.sizes import sizes
from compresskit.errors import RecipeError
from compresskit.passes.shares import share
from compresskit.shapes import Shape


def sparse_rows(network: fx.GraphModule, input_shape: Shape, part: float) -> fx.GraphModule:
    """A copy with all weights zero but the largest, as many as take `part` of the bytes of the network at 32 bits a
    number when they are stored as compressed sparse rows (document, 5.2). Parameters of one dimension stay.
    """
    found, allowed = copy.deepcopy(network), part * sizes(network, input_shape).raw
    weights = [parameter for parameter in found.parameters() if parameter.ndim > 1]
    whole = [weight.detach().clone() for weight in weights]
    ordered = torch.cat([weight.abs().flatten() for weight in whole]).sort().values

    def fits(zeros: int) -> bool:
        _without(weights, whole, ordered, zeros)
        return sizes(found, input_shape).csr <= allowed

    _without(weights, whole, ordered, bisect_left(range(len(ordered)), True, key=fits))
    return found


def check_sparse_rows(network: fx.GraphModule, input_shape: Shape, at: str) -> None:
    """Raises RecipeError where what stays without any weight takes more than the share `at` of the bytes."""
    bare = copy.deepcopy(network)
    for parameter in bare.parameters():
        if parameter.ndim > 1:
            nn.init.zeros_(parameter)
    least = sizes(bare, input_shape).csr / sizes(network, input_shape).raw
    if share(at) < least:
        raise RecipeError(
            f"reconstruct.compare.sparse_rows: {at} of the bytes do not hold what sparse rows take without a single "
            f"weight, {least:.1%}; ask for more, or leave the comparison out"
        )


@torch.no_grad()
def _without(weights: Sequence[Tensor], whole: Sequence[Tensor], ordered: Tensor, zeros: int) -> None:
    """Sets the least `zeros` of all weights to zero; ordered: all magnitudes, rising."""
    least = ordered[zeros - 1] if zeros else -1.0
    for weight, values in zip(weights, whole, strict=True):
        weight.copy_(torch.where(values.abs() > least, values, 0.0))
