"""What networks are in size, by layer and beside each other."""

import numpy as np

from compresskit.plots import sizes as plots
from tests.plots.test_training import drawn

WHOLE = {"conv1": (10, 600), "conv2": (30, 300), "head": (60, 100)}


def bars(panel):
    """(place of the middle, height) of each bar."""
    return [(round(bar.get_x() + bar.get_width() / 2, 6), round(bar.get_height(), 6)) for bar in panel.patches]


def test_one_network_is_drawn_in_shares_of_itself(monkeypatch):
    monkeypatch.setattr("tests.plots.test_training.plots", plots)
    figure = drawn(monkeypatch, lambda: plots.layer_sizes("sizes.png", {"": WHOLE}))
    above, below = figure.axes
    assert bars(above) == [(0, 10), (1, 30), (2, 60)]
    assert bars(below) == [(0, 60), (1, 30), (2, 10)]
    assert above.get_legend() is None


def test_a_second_network_is_drawn_in_shares_of_the_first(monkeypatch):
    monkeypatch.setattr("tests.plots.test_training.plots", plots)
    fused = {"conv1": (10, 600), "fused": (50, 200)}
    figure = drawn(monkeypatch, lambda: plots.layer_sizes("sizes.png", {"before": WHOLE, "after": fused}))
    above, below = figure.axes
    assert bars(above) == [(-0.2, 10), (0.8, 30), (1.8, 60), (0.2, 10), (3.2, 50)]
    np.testing.assert_allclose([height for _, height in bars(below)], [60, 30, 10, 60, 20])
    assert [text.get_text() for text in below.get_xticklabels()] == ["conv1", "conv2", "head", "fused"]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["before", "after"]


def test_a_network_that_multiplies_nothing_can_be_drawn(monkeypatch):
    monkeypatch.setattr("tests.plots.test_training.plots", plots)
    figure = drawn(monkeypatch, lambda: plots.layer_sizes("sizes.png", {"": {"norm": (4, 0)}}))
    assert bars(figure.axes[1]) == [(0, 0)]


def test_networks_beside_each_other(monkeypatch):
    monkeypatch.setattr("tests.plots.test_training.plots", plots)
    panels = {
        "accuracy": {"float": (0.9, "0.9000"), "int8": (0.8, "0.8000")},
        "loss": {"float": (0.2, "0.2000"), "int8": (float("inf"), "inf")},
    }
    figure = drawn(monkeypatch, lambda: plots.side_by_side("net.onnx.png", panels))
    for panel, (name, values) in zip(figure.axes, panels.items(), strict=True):
        assert panel.get_title() == name
        assert [text.get_text() for text in panel.get_yticklabels()] == ["float", "int8"]
        assert [text.get_text() for text in panel.texts] == [text for _, text in values.values()]
        assert panel.yaxis_inverted()
    assert [bar.get_width() for panel in figure.axes for bar in panel.patches] == [0.9, 0.8, 0.2, 0.0]
