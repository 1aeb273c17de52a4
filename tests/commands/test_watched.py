"""Metrics of layers that a training watches: in its report, in plots of comparisons, and by epoch in spectra.csv."""

import csv
import json
from pathlib import Path

import pytest

from compresskit.plots import layers as plots

RECIPE = """\
model: {kind: convnet, channels: [4, 8], dense: [16]}
data: {kind: mnist-mini, limit: 300}
train:
  epochs: 2
  batch_size: 64
  keep: all
  optimizer: {kind: adam, lr: 5e-3}
  layerwise_rates: {watch: [entropy, stable_rank]}
spectra:
report: {latency_repeats: 2}
"""
ROWS = {"one rate": {}, "by rank": {"train.layerwise_rates": {"metric": "stable_rank", "watch": ["entropy"]}}}


@pytest.fixture
def watched(call, tmp_path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple]:
    """What each plot of layers was given, and under which name it was saved."""
    found: dict[str, tuple] = {}
    for name in ("watched", "means", "layers_apart", "rates"):
        original = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda path, *a, o=original: (found.update({path.name: a}), o(path, *a)))
    return found


def test_the_report_says_what_was_watched_and_draws_it(call, watched, drawn):
    outcome = call("train", watched, "--quiet")
    assert outcome.status == 0, outcome.err
    found = json.loads(Path("runs/net-train/report.json").read_text())
    (table,) = [table for table in found["tables"] if table["title"].startswith("watched")]
    with Path("runs/net-train/metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    for metric, layers, least, mean, largest in table["rows"]:
        values = [float(last[key]) for key in last if key.startswith(f"{metric} of ") and last[key] != "nan"]
        assert (layers, least, largest) == (len(values), pytest.approx(min(values)), pytest.approx(max(values)))
        assert mean == pytest.approx(sum(values) / len(values))
    assert any("measuring entropy, stable_rank took" in note for note in found["notes"])
    (metrics,) = drawn["layer-metrics.png"]
    assert list(metrics) == ["entropy", "stable_rank"]
    assert Path("runs/net-train/layer-metrics.png").exists()
    assert not Path("runs/net-train/layer-rates.png").exists()


def test_spectra_have_every_figure_of_every_epoch(call, watched):
    assert call("train", watched, "--quiet").status == 0
    assert call("spectra", watched, "-c", "runs/net-train", "--quiet").status == 0
    with Path("runs/net-spectra/spectra.csv").open() as file:
        rows = list(csv.DictReader(file))
    own, last = ([row for row in rows if row["epoch"] == epoch] for epoch in ("", "2"))
    assert [row["name"] for row in own] == [row["name"] for row in last]
    assert [{**row, "epoch": ""} for row in last] == own  # model.pt is that of the last epoch
    first = [row for row in rows if row["epoch"] == "1"]
    assert [row["entropy"] for row in first] != [row["entropy"] for row in last]
    with Path("runs/net-train/metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    for row in last:
        assert float(row["entropy"]) == pytest.approx(float(logged[-1][f"entropy of {row['name']}"]))


def test_compared_networks_are_drawn_beside_each_other(call, watched, drawn):
    compare = f"train.compare={json.dumps({'rows': ROWS | {'moved': {'data.augment': {'crop': 2}}}})}"
    outcome = call("train", watched, compare, "--quiet")
    assert outcome.status == 0, outcome.err
    (metrics,) = drawn["comparison-metrics.png"]
    assert list(metrics) == ["entropy", "stable_rank"]
    assert list(metrics["entropy"]) == ["one rate", "by rank", "moved"]
    assert list(metrics["stable_rank"]) == ["one rate", "moved"]
    assert list(drawn["comparison-rates.png"][0]) == ["by rank"]
    metric, networks, factors = drawn["comparison-entropy.png"]
    assert (metric, list(networks)) == ("entropy", ["one rate", "by rank", "moved"])
    assert len(factors) == 4
    values = [networks[name][0]["conv2"][-1] for name in ("one rate", "moved")]
    assert values[0] != values[1]  # other images
    refused = call("train", watched, 'train.compare={"rows": {"a": {"data.limit": 100}}}', "--dry-run")
    assert refused.status == 2
    assert "data.augment" in refused.err


def test_a_grid_draws_what_each_row_gains(call, watched, monkeypatch):
    given = []
    monkeypatch.setattr("compresskit.commands.train.compare.gains", lambda *a: given.append(a))
    columns = {"lr 0.005": {}, "lr 0.01": {"train.optimizer.lr": 0.01}}
    outcome = call("train", watched, f"train.compare={json.dumps({'rows': ROWS, 'columns': columns})}", "--quiet")
    assert outcome.status == 0, outcome.err
    ((path, ends, first, metric),) = given
    assert (path.name, first, metric) == ("comparison-gains.png", "one rate", "accuracy")
    assert list(ends) == [(row, column) for row in ROWS for column in columns]
    found = json.loads(Path("runs/net-train/report.json").read_text())["details"]["compare"]
    for cell in found:
        last = cell["trials"][0]["rows"][-1]
        expected = {"training": [last["train_accuracy"]], "test": [last["test_accuracy"]]}
        assert ends[cell["row"], cell["column"]] == expected


def test_retraining_of_pruned_networks_is_drawn_by_size(call, watched, drawn):
    assert call("train", watched, "--quiet").status == 0
    rates = [{"watch": ["entropy"]}, {"metric": "stable_rank", "watch": ["entropy"]}]
    section = {
        "target": {"params": "60%"},
        "retrain": {"epochs": 2, "batch_size": 64},
        "compare": {"at": ["60%", "40%"], "layerwise_rates": rates},
    }
    outcome = call("prune", watched, f"prune={json.dumps(section)}", "-c", "runs/net-train", "--quiet")
    assert outcome.status == 0, outcome.err
    for size in ("60", "40"):
        metric, networks, factors = drawn[f"comparison-entropy-params-{size}.png"]
        assert (metric, list(networks)) == ("entropy", ["one rate", "rates by stable_rank"])
        assert [len(values) for values in networks["one rate"][0].values()] == [2] * 4
        assert set(factors) == {"conv1", "conv2", "fc1", "head"}


def test_a_row_that_diverged_gains_nothing_and_stops_nothing(call, watched, monkeypatch):
    given = []
    monkeypatch.setattr("compresskit.commands.train.compare.gains", lambda *a: given.append(a))
    rows = {"one rate": {}, "too fast": {"train.optimizer": {"kind": "sgd", "lr": 1e9}}}
    columns = {"a": {}, "b": {"train.batch_size": 32}}
    outcome = call("train", watched, f"train.compare={json.dumps({'rows': rows, 'columns': columns})}", "--quiet")
    assert outcome.status == 1, outcome.err
    found = json.loads(Path("runs/net-train/report.json").read_text())
    assert list(found["failed"]) == ["compare/too-fast/a", "compare/too-fast/b"]
    assert given == []


def test_layers_that_no_network_has_are_not_drawn(tmp_path):
    plots.layers_apart(tmp_path / "a.png", "alpha", {"net": [{"other": [1.0]}]}, {"conv1": [1.0]})
    assert not (tmp_path / "a.png").exists()
    rows = {"conv1": [float("nan"), 2.0], "conv2": [float("nan"), 3.0]}
    plots.layers_apart(tmp_path / "b.png", "alpha", {"net": [rows, rows]}, {"conv1": [1.2], "conv2": [0.8]})
    assert (tmp_path / "b.png").exists()
