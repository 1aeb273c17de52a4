"""Files of plots."""

import itertools
from types import SimpleNamespace

from matplotlib import legend

from compresskit.plots.panels import band, grid, save


def test_a_legend_that_takes_long_is_no_warning(tmp_path, monkeypatch):
    seconds = itertools.count(0.0, 10.0)
    monkeypatch.setattr(legend, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    figure, (panel,) = grid(1, 3.0, 2.0)
    panel.plot([0, 1], label="a line")
    panel.legend()
    save(figure, tmp_path / "plot.png")
    assert next(seconds) > 10  # it was timed
    assert {path.name for path in tmp_path.iterdir()} == {"plot.png", "plot.svg"}


def test_of_one_epoch_ticks_are_whole_epochs_too():
    _, (panel,) = grid(1, 7.0, 4.5)
    band(panel, [[0.9]], 1, "a line", "C0")
    assert [tick for tick in panel.get_xticks() if tick != round(tick)] == []
