import math

import pytest
import torch
from torch.optim import lr_scheduler

from compresskit.training.optimization.schedules import SCHEDULES, Constant, Cosine, Linear, MultiStep, Step
from compresskit.training.options import Training

STEPS, EPOCHS = 5, 8
SETTINGS = {"step": {"step_size": 3}, "multi-step": {"milestones": (2, 5)}}


def factors(schedule):
    return [schedule(step, STEPS, EPOCHS) for step in range(STEPS * EPOCHS)]


def torchs(build, *, every):
    """Factors of a scheduler of torch that is stepped once in `every` optimiser steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = build(optimizer), []
    for step in range(STEPS * EPOCHS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return found


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_rises_linearly_to_the_schedule_without_it(kind):
    plain = SCHEDULES[kind](**SETTINGS.get(kind, {}))
    warm = SCHEDULES[kind](warmup=1.5, warmup_start=0.2, **SETTINGS.get(kind, {}))
    ramp = [0.2 + 0.8 * step / 7.5 for step in range(8)]
    assert factors(warm)[:8] == pytest.approx(ramp, rel=1e-12)
    if kind not in ("cosine", "linear"):  # whose curve starts where the warm-up ends
        assert factors(warm)[8:] == factors(plain)[8:]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_starts_at_the_full_rate_and_never_exceeds_it(kind):
    schedule = SCHEDULES[kind](**SETTINGS.get(kind, {}))
    assert schedule.kind == kind
    assert factors(schedule)[0] == 1.0
    assert all(0 <= factor <= 1 for factor in factors(schedule))


def test_step_equals_torchs():
    expected = torchs(lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.3), every=STEPS)
    assert factors(Step(step_size=3, gamma=0.3)) == pytest.approx(expected, rel=1e-12)


def test_multi_step_equals_torchs():
    expected = torchs(lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.3), every=STEPS)
    assert factors(MultiStep(milestones=(2, 5), gamma=0.3)) == pytest.approx(expected, rel=1e-12)


def test_cosine_equals_torchs():
    total = STEPS * EPOCHS
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total, eta_min=0.1), every=1)
    assert factors(Cosine(final=0.1)) == pytest.approx(expected, rel=1e-10)  # torch's is a recursion


def test_linear_equals_torchs():
    total = STEPS * EPOCHS
    expected = torchs(lambda o: lr_scheduler.LinearLR(o, 1.0, end_factor=0.1, total_iters=total), every=1)
    assert factors(Linear(final=0.1)) == pytest.approx(expected, rel=1e-10)  # torch's is a recursion
    expected = torchs(lambda o: lr_scheduler.PolynomialLR(o, total_iters=total), every=1)
    assert factors(Linear()) == pytest.approx(expected, rel=1e-10)


def test_warmup_equals_torchs():
    expected = torchs(lambda o: lr_scheduler.LinearLR(o, start_factor=0.01, total_iters=10), every=1)
    assert factors(Constant(warmup=2)) == pytest.approx(expected, rel=1e-10)  # torch's is a recursion


@pytest.mark.parametrize("curve", [Cosine, Linear])
def test_ends_at_its_final_share_after_any_warmup(curve):
    for warmup in (0, 3):
        assert curve(final=0.25, warmup=warmup)(STEPS * EPOCHS, STEPS, EPOCHS) == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize("curve", [Cosine, Linear])
def test_is_halfway_down_in_the_middle_of_what_the_warmup_leaves(curve):
    assert curve(warmup=2)(5 * STEPS, STEPS, EPOCHS) == pytest.approx(0.5, abs=1e-15)


def test_milestones_must_rise():
    with pytest.raises(ValueError, match=r"milestones: \[5, 2\] do not rise"):
        MultiStep(milestones=(5, 2))


def test_warmup_must_end_before_the_run():
    with pytest.raises(ValueError, match=r"schedule.warmup: 3 epochs do not fit before the end of 3"):
        Training(epochs=3, schedule=Cosine(warmup=3))


def test_a_cosine_by_epoch_is_that_of_equation_2_12():
    """lr_t = lr_0 / 2 (1 + cos((t + 1) pi / T)) at every step of epoch t."""
    schedule = Cosine(by="epoch")
    for epoch in range(EPOCHS):
        expected = (1 + math.cos((epoch + 1) * math.pi / EPOCHS)) / 2
        for step in range(STEPS):
            assert schedule(epoch * STEPS + step, STEPS, EPOCHS) == pytest.approx(expected, abs=1e-15)
    warm = Cosine(by="epoch", warmup=1, final=0.2)
    assert warm(0, STEPS, EPOCHS) < warm(STEPS - 1, STEPS, EPOCHS) < 1
    assert warm(STEPS * EPOCHS - 1, STEPS, EPOCHS) == pytest.approx(0.2)
