"""Data, a model and a loss of the user's own, in one recipe, trained, pruned and resumed."""

SOURCE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def parts(count=120):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    whole = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 0).long())
    return {"train": whole, "test": torch.utils.data.Subset(whole, range(40))}

def net(num_classes):
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, num_classes))

def loss(outputs, targets, scale):
    return scale * nn.functional.cross_entropy(outputs, targets)
"""
RECIPE = """
model: all_of_mine:net
data: {kind: "all_of_mine:parts", outputs: 3, validation: 20}
train: {epochs: 2, batch_size: 20, loss: {kind: "all_of_mine:loss", arguments: {scale: 2.0}}}
prune: {target: {params: 60%}, repair: top-down}
"""


def test_all_of_ones_own(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all_of_mine.py").write_text(SOURCE)
    (tmp_path / "net.yaml").write_text(RECIPE)
    for command in (["validate"], ["train"], ["evaluate", "-c", "runs/net-train"], ["prune", "-c", "runs/net-train"]):
        verb, *options = command
        outcome = call(verb, "net.yaml", *options)
        assert outcome.status == 0, outcome.err
    assert "is known by its name, its arguments" in (tmp_path / "runs/net-train/report.md").read_text()
    again = call("train", "net.yaml", "--resume")
    assert again.status == 0, again.err
