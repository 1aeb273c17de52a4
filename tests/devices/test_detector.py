"""A detector with targets and outputs of its own on the pretended GPU: its loss finds all there, metrics on the CPU."""

import sys

import pytest

from tests.commands.test_own_targets import CODE
from tests.devices.conftest import COMMON, invoked
from tests.pretended_gpu import pretended_gpu

PLACED = """
def placed(outputs, targets):
    "Metrics see the CPU alone."
    boxes = [one for batch in targets for one in batch["places"]]
    return float(all(one.device.type == "cpu" for one in [*boxes, *(part for batch in outputs for part in batch)]))

def there(outputs, targets):
    assert all(one.device == outputs["fine"].device for one in targets["places"])
    return loss(outputs, targets)
"""
TRAIN = {"epochs": 1, "batch_size": 16, "loss": "spots_gpu:there", "optimizer": {"kind": "adam", "lr": 1e-2}}
RECIPE = COMMON | {
    "model": {"kind": "spots_gpu:Detector"},
    "data": {"kind": "spots_gpu:spots", "collate": "spots_gpu:collate"},
    "report": {"metrics": ["spots_gpu:placed"], "latency_repeats": 1, "plots": False},
    "train": TRAIN,
    "prune": {"target": {"macs": "60%"}, "repair": "top-down", "match": {"steps": 4}, "retrain": TRAIN},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "spots_gpu.py").write_text(CODE + PLACED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("spots_gpu", None)


def test_it_is_trained_and_pruned(folder):
    with pretended_gpu():
        for verb, options in (("train", ()), ("prune", ("-c", folder / "train"))):
            done = invoked(verb, folder, RECIPE, "cuda", "--out", folder / verb, *options)
            assert done.exit_code == 0, done.stderr[-2000:]
    assert '"placed": 1.0' in (folder / "prune/report.json").read_text()
