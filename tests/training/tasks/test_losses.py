import math

import pytest
import torch

from compresskit.errors import RecipeError
from compresskit.training.tasks.detection import Yolo
from compresskit.training.tasks.losses import LOSSES, CrossEntropy, MeanAbsolute, MeanSquared, loss_for

SCORES = [[1.0, -2.0, 0.5], [0.2, 0.1, -0.7]]
LABELS = [2, 0]
NUMBERS = [[0.0, 1.0, 2.0], [-1.0, 0.5, 0.25]]


def cross_entropy_by_hand(smoothing):
    total = 0.0
    for row, label in zip(SCORES, LABELS, strict=True):
        norm = math.log(sum(math.exp(score) for score in row))
        for index, score in enumerate(row):
            weight = (1 - smoothing) * (index == label) + smoothing / len(row)
            total -= weight * (score - norm)
    return total / len(SCORES)


def mean_by_hand(power):
    pairs = [(a, b) for row, other in zip(SCORES, NUMBERS, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(abs(a - b) ** power for a, b in pairs) / len(pairs)


BY_HAND = [
    (CrossEntropy(), LABELS, cross_entropy_by_hand(0.0)),
    (CrossEntropy(label_smoothing=0.1), LABELS, cross_entropy_by_hand(0.1)),
    (MeanSquared(), NUMBERS, mean_by_hand(2)),
    (MeanAbsolute(), NUMBERS, mean_by_hand(1)),
]


@pytest.mark.parametrize(("loss", "target", "expected"), BY_HAND)
def test_equals_the_formula(loss, target, expected):
    target = torch.tensor(target, dtype=torch.float64 if isinstance(target[0], list) else torch.int64)
    assert loss(torch.tensor(SCORES, dtype=torch.float64), target).item() == pytest.approx(expected, rel=1e-12)


def test_every_loss_has_a_formula_here():
    elsewhere = {Yolo}  # test_detection.py; OwnLoss has none of its own
    assert {type(loss) for loss, _, _ in BY_HAND} | elsewhere == set(LOSSES.values())


def test_registry_names_the_kinds():
    assert {kind: loss().kind for kind, loss in LOSSES.items()} == {kind: kind for kind in LOSSES}


def test_the_task_picks_the_default_and_refuses_what_does_not_fit():
    assert loss_for("classification", None) == CrossEntropy()
    assert loss_for("regression", None) == MeanSquared()
    assert loss_for("regression", MeanAbsolute()) == MeanAbsolute()
    with pytest.raises(RecipeError, match="loss: cross-entropy was given, but .* regression; use mse or mae"):
        loss_for("regression", CrossEntropy())
    with pytest.raises(RecipeError, match="loss: mse was given, but .* detection; use yolo"):
        loss_for("detection", MeanSquared())
