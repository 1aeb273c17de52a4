"""Held-out images as judges: one mean over all of them, however they come in batches."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compresskit.commands.reconstruct.judge import judge_by
from compresskit.graph.trace import trace


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("size", [3, 5, 13])
def test_the_loss_is_the_mean_over_all_images(task, size):
    torch.manual_seed(0)
    original, candidate = (trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (3, 2, 2)) for _ in range(2))
    images = torch.randn(13, 3, 2, 2)
    split = SimpleNamespace(
        batches=lambda size, device: ((part, None) for part in images.split(size)),
        sample=lambda count: SimpleNamespace(batches=lambda size, device: [(images[:count], None)]),
    )
    current = SimpleNamespace(
        data=SimpleNamespace(task=task), inputs_of=lambda part: (inputs for inputs, _ in part.batches(size, None))
    )
    judge = judge_by(current, original, split, 2)
    with torch.no_grad():
        expected, found = original(images).double(), candidate(images).double()
    if task == "classification":
        p, q = expected.softmax(1), found.softmax(1)
        loss = sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for i in range(13) for c in range(4)) / 13
    else:
        loss = sum(float((expected[i, c] - found[i, c]) ** 2) for i in range(13) for c in range(4)) / 52
    assert judge.loss(candidate) == pytest.approx(loss, rel=1e-6)
    assert judge.loss(original) == pytest.approx(0, abs=1e-9)
    assert [len(part) for part in judge.images()] == [2]
    assert (judge.accuracy is None) == (task == "regression")
