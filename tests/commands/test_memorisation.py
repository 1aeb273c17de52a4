"""Errors under corrupted labels, of nets whose predictions are known."""

import copy
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import fx, nn

from compresskit.commands.memorisation import memorise
from compresskit.commands.session import Session
from compresskit.commands.train.section import Memorisation
from compresskit.data.dataset import Split
from compresskit.data.mini import MnistMini
from compresskit.distributed import Group
from compresskit.report import TerminalProgress

CPU = torch.device("cpu")


def error(network: nn.Module, split: Split) -> float:
    ((inputs, targets),) = split.batches(100_000, CPU)
    with torch.no_grad():
        wrong = [int(scores.argmax()) != int(target) for scores, target in zip(network(inputs), targets, strict=True)]
    return 100 * sum(wrong) / len(wrong)


def linear(seed: int) -> fx.GraphModule:
    torch.manual_seed(seed)
    return fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))


def test_columns_are_best_test_last_test_and_training_error_on_the_corrupted_labels(tmp_path):
    source = MnistMini(limit=400)
    recipe = SimpleNamespace(section=lambda name: source, seed=5, trials=2, moments=SimpleNamespace(batch_size=300))
    recipe.report = SimpleNamespace(metrics=None)
    data = source.load(5)
    folder = SimpleNamespace(path=tmp_path)
    current = Session("train", None, recipe, data, CPU, Group(), (), folder, TerminalProgress(quiet=True), ExitStack())
    asked = []

    def train(current, folder, trial, label):
        asked.append((folder.relative_to(tmp_path), label))
        return linear(trial), SimpleNamespace(best_state=copy.deepcopy(linear(10 + trial).state_dict()))

    table = memorise(current, Memorisation(label_noise=(0.5, 0.804)), {"one": train, "other": train})
    assert [row[:2] for row in table.rows] == [(f"{n}%", name) for n in ("50", "80.4") for name in ("one", "other")]
    assert asked[0] == (Path("memorisation/noise-50/0-one/trial-1"), "50% noise, one")
    assert len({folder for folder, _ in asked}) == 8
    for level, row in zip((0.5, 0.804), table.rows[::2], strict=True):
        noisy = MnistMini(limit=400, label_noise=level).load(5)
        for trial in (0, 1):
            last, best = linear(trial), linear(10 + trial)
            expected = error(best, data.test), error(last, data.test), error(last, noisy.train)
            assert len({*expected, error(last, data.train)}) == 4  # or the test could not tell them apart
            assert [values[trial] for values in row[2:]] == pytest.approx(expected, abs=1e-10)
