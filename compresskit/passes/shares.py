"""Amounts that recipes ask for: numbers, or shares of a whole."""

from collections.abc import Sequence
from math import nan
from typing import Annotated

from annotated_types import Gt

Amount = Annotated[float, Gt(0)] | str


def share(text: str) -> float:
    """The share that a text such as `60%` states; NaN where it states none."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else nan
    except ValueError:
        return nan


def only_one(target: object, goals: Sequence[str]) -> None:
    """Raises ValueError unless `target` names one of the goals, as a number or as a share between 0 and 100 %."""
    given = [name for name in goals if getattr(target, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(goals)}, not {len(given)}")
    amount = getattr(target, given[0])
    if isinstance(amount, str) and not 0 < share(amount) < 1:
        raise ValueError(f"{given[0]}: {amount!r} is no share between 0% and 100%; write it as 50%, or as a number")
