"""Plots as parts of a page."""

import re

from matplotlib.figure import Figure

from compresskit.page import pictures
from compresskit.page.pictures import Pictures
from compresskit.plots.panels import save
from tests.pages import Page


def draw(path, title="a < b & c"):
    figure = Figure(figsize=(4, 3), layout="constrained")
    panel = figure.subplots()
    panel.plot([1, 2, 3], [0.001, 0.1, 1], "o-", label="<script>")
    panel.set(title=title, yscale="log")
    panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def test_pictures_of_one_page_share_styles_and_no_names(tmp_path):
    for name in ("one.png", "two.png", "step-1/one.png"):
        draw(tmp_path / name)
    found = Pictures()
    shown = found.read(tmp_path)
    assert [(picture.name, picture.is_own) for picture in shown] == [
        ("one.svg", True),
        ("two.svg", True),
        ("step-1/one.svg", False),
    ]
    assert [picture.width for picture in shown] == [384] * 3  # four inches
    page = Page("".join(picture.svg for picture in shown))
    assert page.dangling == set()
    assert page.outside == []
    assert "a < b & c" in page.texts["text"]
    assert "<script>" in page.texts["text"]
    assert not re.search("style=|xlink|xmlns", shown[0].svg)
    used = set(re.findall(r'class="(\w+)"', shown[0].svg))
    assert used == set(found.styles.values())


def test_what_makes_a_page_too_large_is_left_out(tmp_path, monkeypatch):
    for name in ("one.png", "two.png", "step-1/one.png"):
        draw(tmp_path / name)
    size = len(Pictures().read(tmp_path)[0].svg)
    monkeypatch.setattr(pictures, "BUDGET", 2.5 * size)
    assert [bool(picture.svg) for picture in Pictures().read(tmp_path)] == [True, True, False]


def test_names_that_look_like_references_stay_names(tmp_path):
    draw(tmp_path / "own.png", title='url(#x) href="#y"')
    assert 'url(#x) href="#y"' in Page(Pictures().read(tmp_path)[0].svg).texts["text"]


def test_what_is_not_ours_is_left_out(tmp_path):
    draw(tmp_path / "own.png")
    (tmp_path / "logo.svg").write_text('<svg onload="alert(1)"/>')
    (tmp_path / "noise.svg").write_bytes(b"\xff\x00")
    shown = {picture.name: bool(picture.svg) for picture in Pictures().read(tmp_path)}
    assert shown == {"logo.svg": False, "noise.svg": False, "own.svg": True}
