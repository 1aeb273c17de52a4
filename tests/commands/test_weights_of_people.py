"""Weights of 1,000 classes, as they come, and data of ten: one recipe starts a net from them."""

import pytest
import torch

NETS = """
from torch import nn

def net(num_classes=1000, width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )
"""
RECIPE = """
model: {kind: "wide_nets:net", weights: w.pth, head: fresh}
data: {kind: mnist-mini, limit: 100}
train: {epochs: 1, batch_size: 50}
prune: {target: {macs: 70%}}
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide_nets.py").write_text(NETS)
    (tmp_path / "net.yaml").write_text(RECIPE)
    namespace: dict = {}
    exec(NETS, namespace)
    torch.manual_seed(0)
    return namespace["net"]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "backbone."])
def test_one_recipe_from_weights_to_a_smaller_net(call, nets, tmp_path, prefix):
    state = nets().state_dict()
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth")
    outcome = call("prune", "net.yaml", "--dry-run")
    assert outcome.status == 0, outcome.err
    outcome = call("train", "net.yaml", "train.optimizer={kind: sgd, lr: 1e-9}")
    assert outcome.status == 0, outcome.err
    report = (tmp_path / "runs/net-train/report.md").read_text()
    assert "in the place of its classifier 5 there is a fresh one with 10 outputs" in report
    if prefix:
        assert f"{prefix} was taken off 9 names" in report
    from compresskit import load

    found = load("runs/net-train/model.pt")
    torch.testing.assert_close(found.state_dict()["0.weight"], state["0.weight"], rtol=0, atol=1e-6)


def test_a_state_dict_as_a_checkpoint(call, nets, tmp_path):
    torch.save({"model": nets(10).state_dict()}, tmp_path / "mine.pth")
    recipe = tmp_path / "net.yaml"
    recipe.write_text(RECIPE.replace(", weights: w.pth, head: fresh", ""))
    outcome = call("evaluate", recipe, "-c", "mine.pth")
    assert outcome.status == 0, outcome.err
    given = call("evaluate", recipe, "model.weights=mine.pth")
    assert given.out.splitlines()[3:6] == outcome.out.splitlines()[3:6]
    recipe.write_text("data: {kind: mnist-mini, limit: 100}\n")
    refused = call("evaluate", recipe, "-c", "mine.pth")
    assert "or its model into the recipe, as `model`" in refused.err


def test_a_factory_that_asks_for_too_much_is_stopped_before_it_is_drawn(call, nets, tmp_path, monkeypatch):
    monkeypatch.setattr("compresskit.models.memory.total_memory", lambda: 1e8)
    recipe = tmp_path / "net.yaml"
    recipe.write_text(RECIPE.replace(", weights: w.pth, head: fresh", ", arguments: {width: 1000000}"))
    outcome = call("validate", recipe)
    assert outcome.status == 2
    assert "model: it has 52,000,000 parameters so far" in outcome.err, outcome.err
