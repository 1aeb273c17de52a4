"""How much each group of channels loses, at a level from 0, nothing, to 1, everything that may go."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def uniform(groups: int, level: float) -> Floats:
    """The same share of every group."""
    return np.full(groups, level)


def erdos_renyi(shapes: Sequence[tuple[int, ...]], level: float) -> Floats:
    """Densities in proportion to (in + out + taps of each side) / (in x out x taps), of which none exceeds 1.

    shapes: (out, in, *taps) of the layer that makes each group. Source: Evci et al. 2020 (ERK).
    """
    raw = np.array([sum(shape) / np.prod(shape, dtype=np.float64) for shape in shapes])
    return np.asarray(1 - np.minimum(1.0, (1 - level) * raw / raw.min()))


def ceilings(metrics: Floats, scale: float, most: float = 1.0) -> Floats:
    """k_i = scale x metric_i / mean metric, at most `most`: the ratio at which a group stops.

    Source: layerwise training, section 3.2. Equal metrics give equal ceilings.
    """
    return np.asarray(np.minimum(most, scale * metrics / metrics.mean()))


def lamp(scores: Tensor) -> Tensor:
    """Each squared score as a share of itself and all larger ones (Lee et al. 2021, equation 3): comparable among
    groups, the largest being 1 in each."""
    ordered, order = scores.double().square().sort()
    larger = ordered.flip(0).cumsum(0).flip(0)
    found = torch.empty_like(ordered)
    found[order] = torch.where(larger > 0, ordered / larger.clamp(min=1e-300), 0.0)
    return found


def counts(ratios: Floats, sizes: Sequence[int], least: int, multiple: int) -> list[int]:
    """How many channels stay of each group: size x (1 - ratio) rounded up, to a multiple, and `least` at least.

    What is rounded is rounded up, for it is better to prune less than more; a group that is smaller than what it is
    rounded to stays whole.
    """
    kept = []
    for ratio, size in zip(ratios, sizes, strict=True):
        exact = int(np.ceil(size * (1 - ratio) - 1e-9))
        kept.append(min(size, -(-max(exact, min(least, size)) // multiple) * multiple))
    return kept
