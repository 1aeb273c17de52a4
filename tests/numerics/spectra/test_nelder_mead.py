"""Nelder and Mead's method against scipy's, to the last digit."""

import math

import pytest
from scipy.optimize import fmin

from compresskit.numerics.spectra.nelder_mead import nelder_mead

FUNCTIONS = {
    "parabola": lambda x: (x - 2) ** 2,
    "far away": lambda x: (x - 70) ** 2 / 50,
    "below zero": lambda x: (x + 3) ** 2,
    "kink": lambda x: abs(x - 1.234567),
    "several": lambda x: math.sin(3 * x) + 0.1 * x * x,
    "walls": lambda x: (x - 1) ** 2 if 0.9 < x < 1.3 else 1e9,
    "flat": lambda x: round(20 * (x - 1) ** 2),
    "steep": lambda x: 1e6 * (x - 0.7) ** 4,
    "rising": lambda x: math.exp(x),
    "chaotic": lambda x: math.sin(1e9 * x) + math.sin(3e12 * x),
    "rough": lambda x: 1e6 * math.sin(1e7 * x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("start", [0.3, 1.0, 1.25, 9.0, -2.0])
def test_it_is_scipys_to_the_last_digit(name, start):
    function = FUNCTIONS[name]
    (wanted,) = fmin(lambda x: function(float(x[0])), start, disp=False)
    assert nelder_mead(function, start) == wanted
