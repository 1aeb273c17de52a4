"""Shares of a whole, as recipes write them."""

from math import nan


def share(text: str) -> float:
    """The share that a text such as `60%` states; NaN where it states none."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else nan
    except ValueError:
        return nan
