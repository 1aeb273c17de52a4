"""Nelder and Mead's simplex of two points, for a function of one variable."""

from collections.abc import Callable

_FIRST = 1.05  # second point of the first simplex, in units of the first one
_TOLERANCE = 1e-4  # of the simplex and of its values, absolute
_CALLS = 200  # of the function, at most


def nelder_mead(function: Callable[[float], float], start: float) -> float:
    """Where the function has a minimum near `start`, which is not 0.

    Step by step, and so digit by digit, what scipy.optimize.fmin does by default, which for one variable spends more
    time on its own arrays than a cheap function takes. Reflection 1, expansion 2, contraction and shrinkage 1/2.
    Source: Nelder and Mead 1965, as scipy 1.17 has it.
    """
    best, other = start, _FIRST * start
    at_best, at_other = function(best), function(other)
    calls = 2
    if at_other < at_best:
        best, other, at_best, at_other = other, best, at_other, at_best
    while calls < _CALLS and not (abs(other - best) <= _TOLERANCE and abs(at_other - at_best) <= _TOLERANCE):
        tried = 2 * best - other
        value = function(tried)
        calls += 1
        if value < at_best:
            further = 3 * best - 2 * other
            at_further = function(further)
            other, at_other = (further, at_further) if at_further < value else (tried, value)
        else:
            outside = value < at_other
            inner = 1.5 * best - 0.5 * other if outside else 0.5 * best + 0.5 * other
            at_inner = function(inner)
            if (at_inner <= value) if outside else (at_inner < at_other):
                other, at_other = inner, at_inner
            else:
                calls += 1
                other = best + 0.5 * (other - best)
                at_other = function(other)
        calls += 1
        if at_other < at_best:
            best, other, at_best, at_other = other, best, at_other, at_best
    return best
