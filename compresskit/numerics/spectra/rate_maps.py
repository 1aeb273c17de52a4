"""Shares of a learning rate that layers get by a metric of their spectra.

A layer's factor is n p_i: n layers, p_i shares of 1. So the mean of the factors is 1, and equal metrics leave the
rate as it is. Source: layerwise training, sections 2.3 and 2.4.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Map = Literal[
    "linear", "square", "cube", "sqrt", "cbrt", "fourth-root", "log2", "softmax", "negative-powers-of-two", "bounded"
]
Noise = Literal["none", "normal-alpha", "normal-rate", "exponential"]

MAPS: dict[Map, Callable[[Floats], Floats]] = {
    "linear": lambda v: v,  # (2.13)
    "square": lambda v: v**2,  # (2.16)
    "cube": lambda v: v**3,  # (2.17)
    "sqrt": np.sqrt,  # (2.18)
    "cbrt": np.cbrt,
    "fourth-root": lambda v: v**0.25,
    "log2": lambda v: np.log2(np.maximum(v, 1)),  # of metrics of 1 and more; what noise draws below 1 counts as 1
    "softmax": lambda v: np.exp(v - v.max()),  # (2.19)
    "negative-powers-of-two": lambda v: _powers_of_two(len(v))[_ranks(v)],  # (2.20) to (2.22)
}


def factors(values: Floats, how: Map, *, inverse: bool = False, bounds: tuple[float, float] | None = None) -> Floats:
    """n map(v_i) / sum map(v) of the metric v of each layer, then cut off at `bounds`.

    "bounded" is TempBalance's map (Zhou et al. 2023, equation 4): linear from lo at the smallest value to hi at the
    largest, (0.5, 1.5) by default, whose mean need not be 1. inverse: the larger the metric, the smaller the rate, by
    1 / v. Domains: softmax, bounded and negative-powers-of-two take any values, log2 those of 1 and more, the others
    those of 0 and more. Where some values are negative, as logarithms may be, all are shifted to start from 1; a 0
    among others that are positive stays 0, and so does its rate.
    Raises ValueError for inverse values where one is 0.
    """
    if values.max() == values.min():
        return np.ones(len(values))
    if inverse and values.min() == 0:
        raise ValueError("0 has no inverse; leave out what measures 0")
    if how == "bounded":
        low, high = bounds or (0.5, 1.5)
        place = (values - values.min()) / (values.max() - values.min())
        return np.asarray(low + (high - low) * (1 - place if inverse else place))
    shifted = positive(values) if values.min() < 0 else values
    mapped = np.asarray(MAPS[how](1 / shifted if inverse else shifted), np.float64)
    found = len(values) * mapped / mapped.sum() if mapped.sum() > 0 else np.ones(len(values))
    return found if bounds is None else found.clip(*bounds)


def positive(values: Floats) -> Floats:
    """The values, shifted to start from 1 where some are not positive, as logarithms may be."""
    return values if values.min() > 0 else values - values.min() + 1


def disturbed(values: Floats, noise: Noise, rate: float, generator: np.random.Generator) -> Floats:
    """The metrics with the randomness of their observation; those below 0 become 0, for rates have no sign.

    normal-alpha: y_i ~ N(v_i, 1) (2.26). normal-rate: n draws of N(rate, 1), of which the largest goes to the layer of
    the largest metric, and so on (2.28): the draws stand for the metrics. exponential: so are n draws of
    Exp(1 / mean v) + N(0, 1) (2.30, 2.31).
    """
    n = len(values)
    if noise == "none":
        return values
    if noise == "normal-alpha":
        return np.maximum(generator.normal(values, 1.0), 0.0)
    if noise == "normal-rate":
        drawn = generator.normal(rate, 1.0, n)
    else:
        drawn = generator.exponential(values.mean(), n) + generator.normal(0.0, 1.0, n)
    return np.maximum(np.sort(drawn), 0.0)[_ranks(values)]


def _ranks(values: Floats) -> NDArray[np.intp]:
    """Place of each value in ascending order; the first of equal ones comes first."""
    return np.argsort(np.argsort(values, kind="stable"))


def _powers_of_two(n: int) -> Floats:
    """2^-n to 2^-1, ascending, with what is missing to a sum of 1 on the largest."""
    powers = np.exp2(-np.arange(n, 0, -1, dtype=np.float64))
    powers[-1] += powers[0]
    return powers
