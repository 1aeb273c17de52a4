"""Losses of the user's own."""

import sys

import pytest
import torch

from compresskit.code import NO_CODE
from compresskit.errors import RecipeError
from compresskit.training.tasks.evaluation import evaluate
from compresskit.training.tasks.losses import OwnLoss, loss_for

SOURCE = """
import torch
from torch import nn

class Focal(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs, targets):
        logs = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - logs.exp()) ** self.gamma * logs).mean()

def scaled(outputs, targets, scale=1.0):
    return scale * nn.functional.cross_entropy(outputs, targets)

def each(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")

def broken(outputs, targets):
    return outputs["logits"]

number = 3
"""


@pytest.fixture(autouse=True)
def _source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_losses.py").write_text(SOURCE)
    yield
    sys.modules.pop("my_losses", None)


OUTPUTS, TARGETS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


def test_functions_and_classes_with_arguments():
    whole = torch.nn.functional.cross_entropy(OUTPUTS, TARGETS)
    scaled = loss_for("classification", OwnLoss(target="my_losses:scaled", arguments={"scale": 3.0}))
    assert torch.equal(scaled(OUTPUTS, TARGETS), 3 * whole)
    plain = OwnLoss(target="my_losses:Focal", arguments={"gamma": 0.0})
    torch.testing.assert_close(plain(OUTPUTS, TARGETS), whole)
    assert OwnLoss(target="my_losses:Focal")(OUTPUTS, TARGETS) < whole


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_losses:each", r"my_losses:each returned \(6,\); it must return the mean of the batch"),
        ("my_losses:broken", r"my_losses:broken raised IndexError: .* on outputs \(6, 4\) and targets \(6,\)"),
        ("my_losses:number", "is a int; it must be a function or a class"),
        ("my_losses:missing", "my_losses has no 'missing'"),
        ("my_losses", "write 'package.module:name'"),
        ("os:system", "os is Python's own and makes no losses"),
    ],
)
def test_what_is_no_loss_is_named(target, message):
    with pytest.raises(RecipeError, match=f"loss.*: .*{message}"):
        loss_for("classification", OwnLoss(target=target))(OUTPUTS, TARGETS)


def test_where_no_code_may_run_none_is_imported(monkeypatch):
    monkeypatch.setenv(NO_CODE, "1")
    with pytest.raises(RecipeError, match="loss.target: my_losses:scaled would be imported and run"):
        loss_for("classification", OwnLoss(target="my_losses:scaled"))
    assert "my_losses" not in sys.modules


class Given:
    """A split of one batch."""

    def __init__(self, outputs, targets) -> None:
        self.pair = outputs, targets

    def batches(self, *_, **__):
        yield self.pair


def test_of_many_classes_the_best_five_count():
    outputs = torch.randn(200, 20, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(20, (200,), generator=torch.Generator().manual_seed(2))
    found = evaluate(torch.nn.Identity(), Given(outputs, targets), task="classification")
    ranks = (outputs > outputs.gather(1, targets[:, None])).sum(1)
    assert found["accuracy@5"] == pytest.approx(float((ranks < 5).double().mean()))
    assert found["accuracy"] == pytest.approx(float((ranks < 1).double().mean()))
    few = evaluate(torch.nn.Identity(), Given(outputs[:, :10], targets % 10), task="classification")
    assert "accuracy@5" not in few
