"""The picture beside a quantised file shows the table, figure by figure."""

from pathlib import Path

from compresskit.commands.export.picture import draw, picture_of
from compresskit.commands.result import Table
from compresskit.plots import sizes


def test_a_panel_for_each_figure_of_the_table(monkeypatch):
    drawn = []
    monkeypatch.setattr(sizes, "side_by_side", lambda path, panels: drawn.append((path, panels)))
    rows = [("PyTorch", 0.9662, 43_912, 0.1152), ("ONNX int8", 0.9655, 17_023, 0.0313)]
    draw(Table("float32 and int8", ("", "test accuracy", "bytes", "ms, batch 1"), rows), Path("nets/net.onnx"))
    panels = {
        "test accuracy": {"PyTorch": (0.9662, "0.9662"), "ONNX int8": (0.9655, "0.9655")},
        "bytes": {"PyTorch": (43_912, "43,912"), "ONNX int8": (17_023, "17,023")},
        "ms, batch 1": {"PyTorch": (0.1152, "0.1152"), "ONNX int8": (0.0313, "0.0313")},
    }
    assert drawn == [(Path("nets/net.onnx.png"), panels)]


def test_formats_of_one_name_have_pictures_of_their_own():
    assert picture_of(Path("net.onnx")) != picture_of(Path("net.pt2"))
