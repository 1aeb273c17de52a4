"""Plots of results that are out of the ordinary: a plot must not be what ends a run."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from compresskit.plots import training as plots


def drawn(monkeypatch, draw):
    """The figure that `draw` would save."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path, **_: figures.append(figure))
    draw()
    figures[0].draw_without_rendering()
    return figures[0]


def test_cosines_that_are_all_equal_are_a_line(monkeypatch):
    smallest, last = {"dead": [[0.0, 0.0]], "net": [[-0.5, -0.1]]}, {"dead": [0.0] * 5, "net": [-0.1, 0.2, 0.4]}
    _, right = drawn(monkeypatch, lambda: plots.gradient_cosines("cosines.png", smallest, last)).axes
    line, curve = right.lines
    assert list(line.get_xdata()) == [0.0, 0.0]
    assert len(curve.get_xdata()) == 200


def test_landscapes_share_their_levels_and_mark_the_minimum(monkeypatch):
    steep = [[9.0, 5.0, 9.0], [4.0, 1.0, 3.0], [math.inf, 0.5, math.nan]]
    flat = [[2.0] * 3] * 3
    figure = drawn(monkeypatch, lambda: plots.landscapes("l.png", {"steep": steep, "flat": flat}, 0.5, "loss"))
    for panel in figure.axes[:2]:
        np.testing.assert_allclose([panel.collections[0].levels[0], panel.collections[0].levels[-1]], [0.5, 9.0])
    cross, dot = figure.axes[0].lines
    assert (*cross.get_xdata(), *cross.get_ydata()) == (0, 0)
    assert (*dot.get_xdata(), *dot.get_ydata()) == (0, 0.5)  # second direction to the right, first one up


def test_many_landscapes_stand_in_rows_with_their_titles_broken(monkeypatch):
    surfaces = {f"network number {n} with quite a long name": [[1.0, 2.0, 3.0]] * 3 for n in range(5)}
    figure = drawn(monkeypatch, lambda: plots.landscapes("l.png", surfaces, 1.0, "loss"))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"network number {n} with quite a long\nname" for n in range(5)]
    assert len({axes.get_position().y0 for axes in figure.axes if axes.get_title()}) == 2


@pytest.mark.parametrize("height", [0.0, 1.0])
def test_a_landscape_of_one_height_is_drawn(monkeypatch, height):
    assert drawn(monkeypatch, lambda: plots.landscapes("l.png", {"dead": [[height] * 3] * 3}, 1.0, "loss")).axes


def test_levels_of_a_landscape_grow_by_a_factor_from_a_thousandth(monkeypatch):
    surface = [[1e-9, 1.0, 2.0]] * 3
    figure = drawn(monkeypatch, lambda: plots.landscapes("l.png", {"net": surface}, 1.0, "loss"))
    levels = figure.axes[0].collections[0].levels
    np.testing.assert_allclose(levels[1:] / levels[:-1], 1000 ** (1 / 20), rtol=1e-12)
    assert levels[0] == pytest.approx(2e-3)


def test_levels_of_an_error_lie_evenly(monkeypatch):
    surface = [[0.1, 0.5, 0.9]] * 3
    figure = drawn(monkeypatch, lambda: plots.landscapes("l.png", {"net": surface}, 1.0, "error"))
    np.testing.assert_allclose(figure.axes[0].collections[0].levels, np.linspace(0.1, 0.9, 21))
