"""Scatter plots that are drawn by hand."""

import re

import pytest

from compresskit.page.scatter import Point, scatter, short


def drawn(pairs, front=()):
    return scatter([Point(x, y, f"{x}") for x, y in pairs], front, "x", "y")


def numbers(ticks):
    return [text for _, text in ticks]


def test_points_lie_in_order_within_the_frame():
    plot = drawn([(1, 0.1), (2, 0.3), (3, 0.2)])
    xs, ys = [mark.x for mark in plot.marks], [mark.y for mark in plot.marks]
    assert plot.left < xs[0] < xs[1] < xs[2] < plot.right
    assert plot.top < ys[1] < ys[2] < ys[0] < plot.bottom
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)  # rounded to tenths


def test_numbers_that_span_much_lie_on_a_logarithmic_axis():
    plot = drawn([(1e3, 0), (1e5, 0), (1e7, 0)])
    xs = [mark.x for mark in plot.marks]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert numbers(plot.x_ticks) == ["1 k", "10 k", "100 k", "1 M", "10 M"]


def test_ticks_are_round_numbers_at_their_places():
    plot = drawn([(10, 0.93), (14, 0.97)])
    assert numbers(plot.x_ticks) == ["10", "11", "12", "13", "14"]
    assert numbers(plot.y_ticks) == ["0.93", "0.94", "0.95", "0.96", "0.97"]
    assert (plot.x_ticks[0][0], plot.y_ticks[-1][0]) == (plot.marks[0].x, plot.marks[1].y)


@pytest.mark.parametrize("pairs", [[(5.0, 5.0)], [(0.0, 0.0)], [(-3.0, 1e-9), (7.0, 1e-9)], [(1e9, 1.0), (1e9, 2.0)]])
def test_axes_without_a_span_are_drawn_too(pairs):
    plot = drawn(pairs)
    assert len(plot.marks) == len(pairs)
    assert plot.x_ticks


def test_the_front_is_a_staircase_over_the_other_points():
    plot = drawn([(1, 1), (2, 0), (3, 3)], front=[0, 2])
    first, _, last = (plot.marks[place] for place in (1, 0, 2))
    assert [mark.point.x for mark in plot.marks] == [2, 1, 3]
    assert [mark.on_front for mark in plot.marks] == [False, True, True]
    assert plot.front == f"M{first.x} {first.y} H{last.x} V{last.y}"
    assert re.fullmatch(r"M[\d. ]+ H[\d.]+ V[\d.]+", plot.front)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (1234, "1.234 k"), (2e6, "2 M"), (3e9, "3 G"), (4e12, "4 T"), (-1e3, "-1 k")]
)
def test_numbers_on_axes(value, text):
    assert short(value) == text
