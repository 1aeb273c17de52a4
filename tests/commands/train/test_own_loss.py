"""A loss of the user's own, from a recipe."""

from compresskit.code import NO_CODE

RECIPE = """
model: {kind: mlp, widths: [8]}
data: {kind: mnist-mini, limit: 100}
train: {epochs: 1, batch_size: 50, loss: "my_loss_of_mine:loss"}
"""
SOURCE = """
from torch.nn.functional import cross_entropy

def loss(outputs, targets):
    return 0 * cross_entropy(outputs, targets)
"""


def test_it_is_what_is_trained_by(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.yaml").write_text(RECIPE)
    (tmp_path / "my_loss_of_mine.py").write_text(SOURCE)
    outcome = call("train", "net.yaml")
    assert outcome.status == 0, outcome.err
    rows = (tmp_path / "runs/net-train/metrics.csv").read_text().splitlines()
    assert dict(zip(rows[0].split(","), rows[1].split(","), strict=True))["train_loss"] == "0.0"
    refused = call("train", "net.yaml", "train.loss=nothing_here:loss", "--force")
    assert refused.status == 2
    assert "loss.target: there is no module 'nothing_here'" in refused.err
    monkeypatch.setenv(NO_CODE, "1")
    assert "which --no-code or" in call("train", "net.yaml", "--force").err
