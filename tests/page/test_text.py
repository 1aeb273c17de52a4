"""What stands in cells, and what rows sort by."""

import math

import pytest

from compresskit.page.text import cell, sort_key


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (3, 3.0),
        (0.25, 0.25),
        (math.inf, math.inf),
        ((1.0, 2.0), 1.5),
        ((1.0, None), 1.0),
        ("8,778", 8778.0),
        ("12.3 k", 12300.0),
        ("43.9 kB", 43900.0),
        ("1.2 MB", 1.2e6),
        ("0.115 ms", 0.000115),
        ("+0.5 %", 0.005),
        ("25.0%", 0.25),
        ("-3", -3.0),
        ("−3.5", -3.5),
        ("1e-05", 1e-05),
        ("2.4e-06", 2.4e-06),
        ("0.9650 ± 0.0012", 0.965),
        (".5", 0.5),
    ],
)
def test_numbers_sort_as_numbers(value, key):
    assert sort_key(value) == pytest.approx(key, rel=1e-12)


@pytest.mark.parametrize(
    "value", ["", "-", "–", "conv1", "16×8×3×3", "734 of 784", "3 layers", "nan", math.nan, None, (), (None,), "1.2.3"]
)
def test_the_rest_are_no_numbers(value):
    assert sort_key(value) is None


@pytest.mark.parametrize("value", [True, False])
def test_yes_and_no_are_words(value):
    assert cell(value) in ("yes", "no")
    assert sort_key(value) is None
