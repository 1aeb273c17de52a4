"""Scatter plots as SVG, drawn by hand: each point has its name and leads somewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 44
_DECADES = 5  # largest over smallest, from which an axis is logarithmic
_TICKS = 6


@dataclass(frozen=True)
class Point:
    """x, y: finite.   title: what is told of it.   href: where it leads, if anywhere."""

    x: float
    y: float
    title: str
    href: str = ""


@dataclass(frozen=True)
class Mark:
    """A point in pixels from the upper left corner."""

    x: float
    y: float
    point: Point
    on_front: bool


@dataclass(frozen=True)
class Scatter:
    """What the template draws. ticks: (place in pixels, text). front: a path, from cheap to dear."""

    x_label: str
    y_label: str
    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    front: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Axis:
    """From numbers to pixels: `low` is drawn at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def place(self, value: float) -> float:
        low, high, at = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        values = _log_ticks(self.low, self.high) if self.logarithmic else _linear_ticks(self.low, self.high)
        return [(self.place(value), short(value)) for value in values]


def scatter(points: Sequence[Point], front: Sequence[int], x_label: str, y_label: str) -> Scatter:
    """At least one point. front: places of those on the Pareto front by rising x, which a staircase joins."""
    x = _axis([point.x for point in points], _LEFT, WIDTH - _RIGHT)
    y = _axis([point.y for point in points], HEIGHT - _BOTTOM, _TOP, logarithmic=False)
    marks = [Mark(x.place(p.x), y.place(p.y), p, place in front) for place, p in enumerate(points)]
    steps = [f"H{marks[place].x} V{marks[place].y}" for place in front[1:]]
    path = " ".join([f"M{marks[front[0]].x} {marks[front[0]].y}", *steps]) if front else ""
    marks.sort(key=lambda mark: mark.on_front)  # those on the front over the others
    return Scatter(x_label, y_label, marks, x.ticks(), y.ticks(), path)


def short(value: float) -> str:
    """A number as axes have it: 12 k, 0.85."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def _axis(values: Sequence[float], start: float, end: float, *, logarithmic: bool | None = None) -> _Axis:
    """With a twentieth of its length free at both ends; logarithmic, if nothing is said, where numbers span much."""
    low, high = min(values), max(values)
    if logarithmic is None:
        logarithmic = low > 0 and high / low > _DECADES
    if logarithmic:
        free = (high / low) ** 0.05
        return _Axis(low / free, high * free, start, end, True)
    free = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return _Axis(low - free, high + free, start, end, False)


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or these alone where there are many."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    fine = [power * factor for power in powers for factor in (1, 2, 5) if low <= power * factor <= high]
    return fine if len(fine) <= _TICKS + 1 else [power for power in powers if low <= power <= high]
