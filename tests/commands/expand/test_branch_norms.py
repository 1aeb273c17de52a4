"""`expand` with batch norms behind branches (acnet-bn), through the program."""

import json
from pathlib import Path

import pytest
from torch import nn

from compresskit.passes.expand.network import expanded_layers
from compresskit.storage.checkpoint import load
from tests.digits import write_recipe

RECIPE = """\
model: {kind: smallnet, kernel: 3}
data: {kind: arrays, path: digits.npz, add_channel: true, validation: 100}
train: {epochs: 2, batch_size: 64, optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}}
expand: {strategy: acnet-bn}
report: {latency_repeats: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE, 320)


def test_they_train_and_fold_away(recipe, call):
    outcome = call("expand", recipe, "--out", "run")
    assert outcome.status == 0, outcome.err
    report = json.loads(Path("run/report.json").read_text())
    (note,) = [note for note in report["notes"] if "a step takes" in note]
    assert note.endswith("since its factors run one by one, and acnet-bn has batch norms behind them")
    assert report["checks"]["contracted net against the expanded one, relative"] < 1e-5
    wide, compact = load(Path("run/expanded.pt")).network, load(Path("run/model.pt")).network
    norms = [norm for layer in expanded_layers(wide).values() for norm in layer.branch_norms]
    assert len(norms) == 9
    assert all(int(norm.num_batches_tracked) == 8 and norm.running_mean.any() for norm in norms)  # 220 images, twice
    assert not any(isinstance(module, nn.BatchNorm2d) for module in compact.modules())
    assert all(conv.bias is not None for conv in compact.modules() if isinstance(conv, nn.Conv2d))
    later = call("expand", recipe, "expand.stages=[contract]", "-c", "run/expanded.pt", "--out", "later")
    assert later.status == 0, later.err
    online = ("expand={strategy: cl, stages: [train, contract], mode: online}", "-c", "run/expanded.pt")
    assert "have batch norms, which run one by one; drop it" in call("expand", recipe, *online).err
    outcome = call("expand", recipe, "-c", "run/model.pt")
    assert outcome.status == 2
    assert "acnet-bn has batch norms, with which no branches are what was trained; use acnet" in outcome.err


def test_no_start_without_its_norms(recipe, call):
    outcome = call("expand", recipe, "expand.compare={c: {init: expandnet}}", "--dry-run")
    assert outcome.status == 2
    assert "acnet-bn would leave a net without its batch norms; use another strategy" in outcome.err
