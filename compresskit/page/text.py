"""Values as the cells of tables show them, and the numbers that their rows sort by."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "%": 1e-2}
_UNITS |= {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"([+-]?(?:[\d,]*\.)?[\d,]*\d(?:e[+-]?\d+)?|[+-]?inf) ?([A-Za-z%]*)(?: ± .*)?")


def cell(value: Any) -> str:
    """Text of a cell: numbers to four digits, one value a trial as mean ± standard deviation."""
    if isinstance(value, tuple):
        return spread(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _number(value)
    return "" if value is None else str(value)


def spread(values: Sequence[float | None]) -> str:
    """`mean ± standard deviation` of several trials (n - 1 in the denominator), the value itself of one."""
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return _number(statistics.fmean(numbers)) if numbers else ""
    mean, deviation = statistics.fmean(numbers), statistics.stdev(numbers)
    if abs(mean) < 10:
        return f"{mean:.4f} ± {deviation:.4f}"
    return f"{mean:,.4g} ± {deviation:.2g}"


def sort_key(value: Any) -> float | None:
    """The number that a value stands for: itself, the mean of trials, or what a text says (`12.3 k`, `+0.5 %`).

    None for other texts and for NaN, which are no places on a line.
    """
    if isinstance(value, tuple):
        numbers = [float(one) for one in value if isinstance(one, int | float)]
        value = statistics.fmean(numbers) if numbers else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if math.isnan(value) else float(value)
    found = _NUMBER.fullmatch(str(value).strip().replace("−", "-"))
    if found is None or found[2] not in _UNITS:
        return None
    return float(found[1].replace(",", "")) * _UNITS[found[2]]


def _number(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 else f"{value:.4g}"
