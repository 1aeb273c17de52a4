import math

import pytest
import torch
from torch import nn

from compresskit.training.optimization.optimizers import OPTIMIZERS, SGD, Adam, AdamW, parameter_groups

LR, DECAY = 0.1, 0.3


def quadratic_gradient(w):
    return 2 * (w - 1)


def steps_of(choice, start, count):
    w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = choice([{"params": [w]}])
    for _ in range(count):
        optimizer.zero_grad()
        (w - 1).square().sum().backward()
        optimizer.step()
    return w.tolist()


def sgd_by_hand(w, count, momentum, nesterov):
    velocity = 0.0
    for _ in range(count):
        gradient = quadratic_gradient(w) + DECAY * w
        velocity = momentum * velocity + gradient
        w -= LR * (gradient + momentum * velocity if nesterov else velocity)
    return w


def adam_by_hand(w, count, decoupled):
    mean = square = 0.0
    for t in range(1, count + 1):
        gradient = quadratic_gradient(w) + (0 if decoupled else DECAY * w)
        w *= 1 - LR * DECAY if decoupled else 1
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        w -= LR * (mean / (1 - 0.8**t)) / (math.sqrt(square / (1 - 0.95**t)) + 1e-8)
    return w


ADAM = {"lr": LR, "betas": (0.8, 0.95), "weight_decay": DECAY}
BY_HAND = {
    "plain": (SGD(lr=LR, momentum=0, weight_decay=DECAY), lambda w: sgd_by_hand(w, 5, 0.0, nesterov=False)),
    "momentum": (SGD(lr=LR, momentum=0.7, weight_decay=DECAY), lambda w: sgd_by_hand(w, 5, 0.7, nesterov=False)),
    "nesterov": (
        SGD(lr=LR, momentum=0.7, nesterov=True, weight_decay=DECAY),
        lambda w: sgd_by_hand(w, 5, 0.7, nesterov=True),
    ),
    "adam": (Adam(**ADAM), lambda w: adam_by_hand(w, 5, decoupled=False)),
    "adamw": (AdamW(**ADAM), lambda w: adam_by_hand(w, 5, decoupled=True)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_steps_are_those_of_the_formula(name):
    choice, by_hand = BY_HAND[name]
    starts = [3.0, -2.0, 0.5]
    assert steps_of(choice, starts, 5) == pytest.approx([by_hand(w) for w in starts], rel=1e-12)


def test_every_optimizer_has_a_formula_here():
    assert {type(choice) for choice, _ in BY_HAND.values()} == set(OPTIMIZERS.values())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_registry_names_the_kind_and_defaults_descend(kind):
    choice = OPTIMIZERS[kind]()
    assert choice.kind == kind
    assert abs(steps_of(choice, [1.5], 20)[0] - 1) < 0.5


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="nesterov: true needs a momentum above 0"):
        SGD(momentum=0.0, nesterov=True)


def test_decay_can_spare_biases_and_norms():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 2))
    network[2].weight.requires_grad_(False)
    spared = SGD(weight_decay=0.1)(parameter_groups(network, decay_bias_and_norm=False)).param_groups
    assert [[p.ndim for p in group["params"]] for group in spared] == [[4, 2], [1, 1, 1, 1, 1]]
    assert [group["weight_decay"] for group in spared] == [0.1, 0.0]
    (everything,) = parameter_groups(network, decay_bias_and_norm=True)
    assert len(everything["params"]) == 7
