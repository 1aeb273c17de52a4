"""Losses and metrics of the user's own: what they may change, and what they may return."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from compresskit.data.memory import Examples, MemorySplit
from compresskit.data.own.targets import OWN, Targets
from compresskit.data.stored.normalization import identity
from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.graph.trace import trace
from compresskit.training.checks import check_own, checked_steps
from compresskit.training.options import Training
from compresskit.training.tasks.evaluation import evaluate, watched
from compresskit.training.tasks.losses import MeanSquared, loss_for
from compresskit.training.tasks.own import OwnLoss, OwnTally


def careless(outputs, targets):
    """Changes both in place."""
    outputs.sub_(outputs.max(1, keepdim=True).values).exp_()
    targets.add_(1)
    return outputs.mean()


def careless_loss(outputs, targets):
    value = torch.nn.functional.cross_entropy(outputs, targets.clone())
    outputs.detach().zero_()
    targets.zero_()
    return value


def largest(outputs, targets):
    return float(outputs.max()) + float(targets.max())


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_what_a_metric_changes_in_place_the_others_do_not_see(task):
    outputs, targets = torch.randn(6, 3, 2, 2), torch.arange(24).view(6, 2, 2) % 3
    if task == "classification":
        outputs, targets = outputs[..., 0, 0], targets[:, 0, 0]
    kept = outputs.clone(), targets.clone()
    alone, beside = OwnTally({"largest": largest}, task), OwnTally({"careless": careless, "largest": largest}, task)
    for tally in (alone, beside):
        tally.add(outputs, targets)
    assert beside.figures(Group())["largest"] == alone.figures(Group())["largest"]
    assert torch.equal(outputs, kept[0])
    assert torch.equal(targets, kept[1])


def test_the_data_stay_as_they_are(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_losses", sys.modules[__name__])
    inputs, targets = torch.randn(20, 6), torch.arange(20) % 3
    test = MemorySplit(Examples(inputs, targets), identity(6))  # its batches are views
    data, network = replace(tiny.dataset(), test=test), tiny.network()
    kept = targets.clone()
    plain = evaluate(network, data.test, task="classification")
    loss = OwnLoss(target="own_losses:careless_loss")
    check_own(network, data, loss, {"careless": careless})
    found = evaluate(network, data.test, task="classification", metrics={"careless": careless})
    assert torch.equal(targets, kept)
    assert {name: found[name] for name in plain} == plain


def test_what_a_loss_changes_in_place_is_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_losses", sys.modules[__name__])
    leaf, targets = torch.randn(6, 3, requires_grad=True), torch.arange(6) % 3
    output = 2 * leaf
    kept = output.detach().clone()
    value = OwnLoss(target="own_losses:careless_loss").made()(output, targets)
    assert torch.equal(output.detach(), kept)
    assert torch.equal(targets, torch.arange(6) % 3)
    expected = torch.nn.functional.cross_entropy(output, targets)
    torch.testing.assert_close(value, expected)
    (found,), (right,) = torch.autograd.grad(value, leaf, retain_graph=True), torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([[0.5]]), np.array([0.5]), torch.tensor(0.5).half()]
)
def test_one_number_may_come_in_any_form(value):
    tally = OwnTally({"half": lambda outputs, targets: value}, "classification")
    tally.add(torch.randn(4, 3), torch.arange(4) % 3)
    assert tally.figures(Group()) == {"half": 0.5}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "returned a NoneType; return one real number"),
        ("0.5", "returned a str; return one real number"),
        (1j, "returned a complex; return one real number"),
        ({"f1": 0.5}, "returned a dict; return one real number"),
        (torch.ones(3), r"returned a Tensor of shape \(3,\) and torch.float32; return one real number"),
        (torch.ones(0), r"returned a Tensor of shape \(0,\) and torch.float32; return one real number"),
        (np.ones((1, 2)), r"returned a ndarray of shape \(1, 2\) and float64; return one real number"),
        (torch.tensor(1j), r"returned a Tensor of shape \(\) and torch.complex64; return one real number"),
        (float("nan"), "returned nan; return a finite number"),
        (torch.tensor(float("inf")), "returned inf; return a finite number"),
    ],
)
def test_what_is_no_number_is_said_in_one_line(value, told):
    tally = OwnTally({"odd": lambda outputs, targets: value}, "classification")
    tally.add(torch.randn(4, 3), torch.arange(4) % 3)
    with pytest.raises(RecipeError, match=f"^report.metrics: odd {told}$"):
        tally.figures(Group())


def boxes(*counts):
    return Targets([torch.ones(count, 5) for count in counts], len(counts))


def test_of_targets_of_any_structure_metrics_get_a_list_of_batches():
    seen = []

    def counted(outputs, targets):
        seen.append(outputs)
        total = sum(one.sum().item() for batch in [*targets, *(one["maps"] for one in outputs)] for one in batch)
        outputs[0]["maps"][0].zero_()
        targets[0][0].zero_()
        return total

    tally = OwnTally({"counted": counted, "again": counted}, OWN)
    tally.add({"maps": [torch.ones(2, 3)], "names": None}, boxes(1, 4))
    tally.add({"maps": [torch.ones(1, 3)], "names": None}, boxes(0))
    assert tally.figures(Group()) == {"counted": 25 + 9, "again": 25 + 9}  # each gets copies
    assert [len(outputs) for outputs in seen] == [2, 2]


def test_a_loss_gets_the_users_own_value(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_losses", sys.modules[__name__])
    leaf = torch.ones(2, 3, requires_grad=True)
    value = OwnLoss(target="own_losses:listed_loss").made()([2 * leaf, 3 * leaf], boxes(1, 4))
    value.backward()
    assert value.item() == 2 * 6 + 3 * 6 + 5
    assert leaf.grad.tolist() == [[5] * 3] * 2


def listed_loss(outputs, targets):
    return sum(one.sum() for one in outputs) + sum(len(one) for one in targets)


class TwoForms(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        found = self.head(self.layer(x).relu())
        return [found, 2 * found] if self.training else found.sigmoid()


class Boxed:
    """A split with as many boxes in a sample as its number says."""

    fingerprint = "boxed"

    def __len__(self):
        return 5

    def batches(self, size, device, **_):
        for start in range(0, 5, size):
            count = min(size, 5 - start)
            yield torch.ones(count, 6) * start, boxes(*range(start, start + count))


def test_losses_read_what_training_gives_and_metrics_what_eval_mode_gives(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_losses", sys.modules[__name__])
    seen = []

    def shapes(outputs, targets):
        seen.append([(tuple(one.shape), len(target)) for one, target in zip(outputs, targets, strict=True)])
        return 0.5

    network = trace(TwoForms(), (6,), whole=True)
    data = replace(tiny.dataset(), test=Boxed(), task=OWN, outputs=0)
    check_own(network, data, OwnLoss(target="own_losses:listed_loss"), {"shapes": shapes})
    assert evaluate(network, data.test, task=OWN, batch_size=3, metrics={"shapes": shapes}) == {"shapes": 0.5}
    assert seen == [[((2, 3), 2)], [((3, 3), 3), ((2, 3), 2)]]
    with pytest.raises(RecipeError, match="^loss: own_losses:pairs_loss raised AttributeError"):
        check_own(network, data, OwnLoss(target="own_losses:pairs_loss"), {})


def pairs_loss(outputs, targets):
    return outputs.view(targets)


def test_without_the_users_own_nothing_is_known_of_them():
    with pytest.raises(RecipeError, match=r"^loss: only a function of yours knows .* name it as loss: package.module"):
        loss_for(OWN, None)
    with pytest.raises(RecipeError, match=r"^loss: only a function of yours"):
        loss_for(OWN, MeanSquared())
    with pytest.raises(RecipeError, match=r"^report.metrics: only functions of yours .* the main one first$"):
        watched(OWN, 0, {})
    assert list(watched(OWN, 0, {"mAP": largest, "recall": largest})) == ["mAP", "recall"]
    assert watched(OWN, 0, {"mAP": largest})["mAP"].higher_is_better


def test_batches_of_any_structure_are_not_divided(tiny):
    data = replace(tiny.dataset(), task=OWN, outputs=0)
    options = Training(epochs=1, batch_size=4, accumulate=2)
    with pytest.raises(RecipeError, match="accumulate: 2 was given, and a batch whose targets are of any structure"):
        checked_steps(tiny.network(), data, options, torch.device("cpu"), Group())
