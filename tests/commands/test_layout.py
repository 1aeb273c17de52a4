"""data.channels_last in the verbs: the same results but for rounding, and convolutions that keep the layout."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.commands.conftest import report

RECIPE = """\
model: {kind: convnet, channels: [4, 8, 8]}
data: {kind: mnist-mini, limit: 300, validation: 100, channels_last: true}
train: {epochs: 1, batch_size: 50, optimizer: {kind: adam, lr: 5e-3}}
finetune: {epochs: 1, batch_size: 50, optimizer: {kind: adam, lr: 1e-3}}
prune: {target: {macs: 70%}, criterion: backward, samples: 100, held_out: 50, repair: top-down, match: {steps: 4}}
reconstruct: {target: {params: 80%}, samples: 100, held_out: 50}
fuse: {layers: [[conv3, head]], held_out: 100}
report: {latency_repeats: 2}
"""


@pytest.fixture
def layouts(monkeypatch):
    """Of what convolutions read, whether its channels lie last; of batches, for latency has its own one sample."""
    found, forward = [], nn.Conv2d._conv_forward

    def watched(self, inputs, weight, bias):
        if len(inputs) > 10 and inputs.shape[1] > 1:
            found.append(inputs.is_contiguous(memory_format=torch.channels_last))
        return forward(self, inputs, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", watched)
    return found


def test_verbs_keep_the_layout_and_give_the_same(call, layouts):
    Path("net.yaml").write_text(RECIPE)
    assert call("train", "net.yaml", "--out", "train").status == 0
    assert len(layouts) > 10
    assert all(layouts)
    for verb in ("prune", "reconstruct", "fuse", "finetune", "evaluate"):
        losses = []
        for layout in (True, False):
            layouts.clear()
            out = f"{verb}-{layout}"
            outcome = call(verb, "net.yaml", f"data.channels_last={layout}", "-c", "train", "--out", out)
            assert outcome.status == 0, outcome.err
            assert all(one == layout for one in layouts), verb
            losses += [one["after"] for one in report(out)["figures"] if one["name"] == "test loss"]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), verb
