"""How much the gradients of mini-batches contradict one another (Sankararaman et al. 2019)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from compresskit.errors import ConvergenceError
from compresskit.options import option


@option
class GradientConfusion:
    """Cosine similarity of the gradients of pairs of mini-batches, at the end of each epoch (ExpandNets, Figure 3).

    The batches are shuffled and augmented as in training, and their size is that of training, or half the training
    samples where that is less: two batches of a pair share no sample.
    """

    pairs: Annotated[int, Ge(2)] = 100  # in each epoch; a density needs two


def gradient_cosines(
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[Tensor],
    pairs: Iterable[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]],
    masks: Mapping[Tensor, Tensor] | None = None,
) -> list[float]:
    """For each pair of batches <g, h> / (||g|| ||h||), g and h the gradients of `loss` by all parameters together.

    masks: by parameter, 0 where it does not learn. Holds two gradients at a time, and leaves none in the parameters.
    A gradient of zero has a cosine of 0 with any.
    Raises ConvergenceError at a gradient that is not finite.
    """
    kept = masks or {}

    def gradient(inputs: Tensor, targets: Tensor) -> list[Tensor | None]:
        found = torch.autograd.grad(loss(inputs, targets), list(parameters), allow_unused=True)
        return [g if g is None or p not in kept else g * kept[p] for g, p in zip(found, parameters, strict=True)]

    return [_cosine(gradient(*one), gradient(*other)) for one, other in pairs]


def _cosine(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    product, first, second = torch.stack([_dot(g, h) for g, h in ((one, other), (one, one), (other, other))]).tolist()
    if not math.isfinite(first + second):
        raise ConvergenceError("gradient_confusion: a gradient is not finite; lower optimizer.lr, or set clip_norm")
    norms = math.sqrt(first) * math.sqrt(second)
    return product / norms if norms else 0.0


def _dot(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> Tensor:
    """Inner product of two gradients, parameter by parameter in float64, shape (); None is a gradient of zero."""
    both = [(g, h) for g, h in zip(one, other, strict=True) if g is not None and h is not None]
    device = next((g.device for g in (*one, *other) if g is not None), None)
    none = torch.zeros((), dtype=torch.float64, device=device)
    return sum(((g.double() * h.double()).sum() for g, h in both), none)
