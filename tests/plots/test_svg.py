"""SVG beside PNG: the same picture in fewer digits."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from compresskit.plots.panels import save
from compresskit.plots.svg import compact


def drawn():
    figure = Figure(figsize=(4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([1.23456789, 2.3456789], [0.001, 1], "o-", label="0.123456789")
    left.set(title='layer "a" <b> & c', yscale="log")
    left.legend()
    right.imshow(np.arange(6).reshape(2, 3))
    return figure


@pytest.fixture
def figure():
    return drawn()


def test_a_plot_is_written_as_png_and_as_svg(tmp_path, figure):
    save(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {'layer "a" <b> & c', "0.123456789"} <= texts
    assert (tmp_path / "plot.svg").stat().st_size < 12_000


def test_the_same_plot_gives_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        save(drawn(), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_what_is_referred_to_stays_and_other_names_go(tmp_path, figure):
    save(figure, tmp_path / "plot.png")
    text = (tmp_path / "plot.svg").read_text()
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert referred == set(re.findall(r' id="([^"]+)"', text)) != set()


def test_numbers_of_places_are_cut_and_those_of_texts_stay():
    svg = '<svg viewBox="0 0 10.12345 5"><g id="a"><text x="1.98765" style="fill: red">0.98765</text></g></svg>'
    assert compact(svg) == '<svg viewBox="0 0 10.12 5"><text x="1.98" style="fill: red">0.98765</text></svg>'
