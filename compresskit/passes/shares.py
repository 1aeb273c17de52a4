"""Amounts that recipes ask for: numbers, or shares of a whole."""

from collections.abc import Sequence
from math import nan
from typing import Annotated

from annotated_types import Gt

Amount = Annotated[float, Gt(0)] | str
Share = str | float  # a text such as 60%; a number is refused with the way to write it


def share(text: "Share") -> float:
    """The share that a text such as `60%` states; NaN where it states none."""
    try:
        return float(text.removesuffix("%")) / 100 if isinstance(text, str) and text.endswith("%") else nan
    except ValueError:
        return nan


def check_share(name: str, given: object, *, whole: bool) -> None:
    """Raises ValueError unless `given`, if there is anything, is a text such as 60%; whole: 100% is one, too."""
    if given is None:
        return
    if not isinstance(given, str):
        told = f"{float(given):.10g}" if isinstance(given, int | float) else str(given)
        as_share = f"{100 * float(given):.4g}%" if isinstance(given, int | float) and 0 < given < 1 else "60%"
        raise ValueError(f"{name}: {told} is a number; write the share as {as_share}")
    if not 0 < share(given) <= 1 or (share(given) == 1 and not whole):
        raise ValueError(f"{name}: {given!r} is no share of the whole; write it as 60%")


def only_one(target: object, goals: Sequence[str]) -> None:
    """Raises ValueError unless `target` names one of the goals, as a number or as a share between 0 and 100 %."""
    given = [name for name in goals if getattr(target, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(goals)}, not {len(given)}")
    amount = getattr(target, given[0])
    if isinstance(amount, str) and not 0 < share(amount) < 1:
        raise ValueError(f"{given[0]}: {amount!r} is no share between 0% and 100%; write it as 50%, or as a number")
    if isinstance(amount, float) and amount < 1 and given[0] not in ("sparsity", "latency"):
        raise ValueError(f"{given[0]}: {amount:.10g} is less than one; write the share as {100 * amount:.4g}%")
