"""Files of plots."""

import itertools
from types import SimpleNamespace

from matplotlib import legend

from compresskit.plots.panels import grid, save


def test_a_legend_that_takes_long_is_no_warning(tmp_path, monkeypatch):
    seconds = itertools.count(0.0, 10.0)
    monkeypatch.setattr(legend, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    figure, (panel,) = grid(1, 3.0, 2.0)
    panel.plot([0, 1], label="a line")
    panel.legend()
    save(figure, tmp_path / "plot.png")
    assert next(seconds) > 10  # it was timed
    assert {path.name for path in tmp_path.iterdir()} == {"plot.png", "plot.svg"}
