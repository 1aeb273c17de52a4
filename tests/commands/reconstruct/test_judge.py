"""Held-out images as judges: which they are, and what they say."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.commands.reconstruct.judge import judge_by
from compresskit.commands.repair.ladder import judging_split
from compresskit.graph.trace import trace


class Images:
    """Ten inputs in batches, with the name of the split that they are of."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))

    def sample(self, count):
        return f"{count} of {self.name}"

    def batches(self, batch_size, device):
        return ((inputs, None) for inputs in self.inputs.split(batch_size))


def current(task: str, validation: Images | None = None):
    data = SimpleNamespace(train=Images("train"), validation=validation, test=Images("test"), task=task)
    recipe = SimpleNamespace(moments=SimpleNamespace(batch_size=3))
    evaluate = lambda network, split: {"accuracy": 0.25, "loss": 1.0}  # noqa: E731
    return SimpleNamespace(data=data, recipe=recipe, device=torch.device("cpu"), evaluate=evaluate)


def net(seed: int):
    torch.manual_seed(seed)
    return trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval())


def outputs(network) -> np.ndarray:
    with torch.no_grad():
        return network(Images("any").inputs).double().numpy()


def test_the_test_set_judges_nothing():
    assert judging_split(current("classification", Images("validation")), 7) == "7 of validation"
    assert judging_split(current("classification"), 7) == "7 of train"


def test_classes_are_judged_by_their_divergence_from_the_original():
    original, candidate = net(1), net(2)
    judge = judge_by(current("classification"), original, Images("held out"), 4)
    expected = 0.0
    for theirs, ours in zip(outputs(original), outputs(candidate), strict=True):
        p, q = (np.exp(values) / np.exp(values).sum() for values in (theirs, ours))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 10
    # the nets run in float32, whose products depend on the size of the batch
    assert judge.loss(candidate) == pytest.approx(expected, rel=1e-5)
    assert judge.loss(original) == pytest.approx(0.0, abs=1e-12)
    assert judge.accuracy is not None
    assert judge.accuracy(candidate) == 0.25


def test_numbers_are_judged_by_their_squared_difference():
    original, candidate = net(1), net(2)
    judge = judge_by(current("regression"), original, Images("held out"), 4)
    expected = np.mean((outputs(original) - outputs(candidate)) ** 2)
    assert judge.loss(candidate) == pytest.approx(expected, rel=1e-5)  # float32, as above
    assert judge.accuracy is None
