"""Matching: nearer to the teacher without a label, never further, the same when it is interrupted, within its masks."""

import copy

import pytest
import torch
from torch import nn

from compresskit.errors import ConvergenceError
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.trace import trace
from compresskit.numerics.distillation import soft_targets
from compresskit.numerics.outputs import relative_error
from compresskit.passes.held_out import HeldOut
from compresskit.passes.repair.matching import Match, Matching
from tests.passes.repair.networks import SHAPE, perturbed, same, teacher_of, weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return teacher_of(Net())


def judged(teacher):
    return HeldOut(teacher, lambda: (x for x, _ in batches(99)), lambda a, b: soft_targets(a, b, 1.0))


def batches(epoch, start=0, size=16):
    """Labels are NaN: who looks at them shows it."""
    for place in range(start, 4):
        draws = torch.Generator().manual_seed(4 * epoch + place)
        yield torch.randn(size, *SHAPE, generator=draws, dtype=torch.float64), torch.full((size,), torch.nan)


def run(work, save=lambda state: None, batches=batches):
    steps = []
    network = work.run(batches, lambda step, least: steps.append((step, least)), save)
    return network, steps


def test_outputs_come_nearer_and_nothing_else_is_changed(teacher):
    student = perturbed(teacher)
    student.conv2.bias.requires_grad_(False)
    before, known = weights(student), weights(teacher)
    work = Matching(student, teacher, judged(teacher), Match(steps=120), {"conv1": None, "conv2": None})
    found, steps = run(work)
    looks = dict(work.found.looks)
    assert [step for step, _ in steps] == list(range(1, 121))
    assert list(looks) == [0, 12, *range(24, 121, 24)]
    assert looks[work.found.best] < 0.1 * looks[0]
    assert steps[-1][1] == looks[work.found.best]
    assert same(before, student.state_dict())
    assert same(known, teacher.state_dict())
    assert torch.equal(found.norm.running_var, teacher.norm.running_var)
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in student.parameters()]
    assert all(parameter.grad is None for parameter in found.parameters())


def test_outputs_of_layers_help_and_are_compared_where_channels_are_left(teacher):
    channels = find_channels(teacher, SHAPE)
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.writes["conv1"][[1, 4, 5]]] = alive[channels.writes["conv2"][[0, 7]]] = False
    small = cut(teacher, channels, alive)
    places = channels.places(alive)
    assert places["conv1"].tolist() == [0, 2, 3, 6, 7]
    assert len(places["head"]) == 4
    plain, layers = (Matching(small, teacher, judged(teacher), Match(steps=100), own) for own in ({}, places))
    run(plain)
    run(layers)
    assert layers.found.told.endswith(" of 100")
    assert plain.found.told.endswith(" of 100")
    assert min(value for _, value in layers.found.looks) < min(value for _, value in plain.found.looks)
    wrong = {"conv1": torch.arange(5), "conv2": torch.arange(10)}
    other = Matching(small, teacher, judged(teacher), Match(steps=100), wrong)
    run(other)
    assert min(value for _, value in layers.found.looks) < min(value for _, value in other.found.looks)


MISLEADING = {"conv1": torch.arange(8).flip(0), "conv2": torch.arange(12).flip(0)}


def test_where_layers_lead_astray_the_outputs_alone_go_on(teacher):
    """As if it had been them from the start; what layers led to is forgotten, its looks and Adam's moments too."""
    student = perturbed(teacher, 0.01)
    plain, misled = (Matching(student, teacher, judged(teacher), Match(steps=400), own) for own in ({}, MISLEADING))
    expected, _ = run(plain)
    found, steps = run(misled)
    assert misled.found.told.endswith(" of 400, without the outputs of layers, which led astray")
    assert [step for step, _ in misled.found.looks] == [0, 40, *range(80, 401, 80)]
    assert dict(misled.found.looks).items() >= dict(plain.found.looks).items()
    assert same(expected.state_dict(), found.state_dict())
    assert [step for step, _ in steps] == [*range(1, 41), *[40] * 40, *range(41, 401)]


def test_layers_that_led_astray_go_on_where_outputs_alone_are_no_better(teacher):
    """As if they had not been tried alone."""
    student = perturbed(teacher, 0.003)
    places = {"conv1": None, "conv2": None}
    tried, sure = (Matching(student, teacher, judged(teacher), Match(steps=33), places) for _ in range(2))
    sure._trial = 0
    expected, _ = run(sure)
    found, steps = run(tried)
    assert [step for step, _ in steps][:6] == [1, 2, 3, 3, 3, 3]
    assert tried.found.layers
    assert dict(tried.found.looks).items() >= dict(sure.found.looks).items()
    assert same(expected.state_dict(), found.state_dict())


def test_it_never_ends_further_away_than_it_began(teacher):
    student = perturbed(teacher)
    work = Matching(student, teacher, judged(teacher), Match(steps=20, rate=30.0))
    found, _ = run(work)
    assert work.found.best == 0
    assert same(weights(student), found.state_dict())
    assert work.found.told.endswith("at step 0 of 20")


@pytest.mark.parametrize(("scale", "trials"), [(0.2, 1), (0.01, 2)])
def test_a_stopped_one_goes_on_to_the_same_weights(teacher, scale, trials):
    student = perturbed(teacher, scale)

    def made():
        return Matching(student, teacher, judged(teacher), Match(steps=33), {"conv2": None})

    whole, _ = run(made())

    class Stopped(Exception):
        pass

    kept = []

    def save(state):
        kept.append(copy.deepcopy(state))
        if len(kept) == 3 + trials:  # looks: at the start, behind each trial, and two more
            raise Stopped

    with pytest.raises(Stopped):
        run(made(), save)
    again, asked = made(), []
    again.load(copy.deepcopy(kept[-1]))

    def told(epoch, start):
        asked.append((epoch, start))
        return batches(epoch, start)

    resumed, steps = run(again, batches=told)
    assert steps[0][0] == kept[-1]["now"]["step"] + 1
    assert asked == [(3, 2), *((epoch, 0) for epoch in range(4, 9))]  # none that was seen before is read again
    assert same(weights(whole), resumed.state_dict())
    for state in kept:
        again = made()
        again.load(copy.deepcopy(state))
        resumed, steps = run(again)
        assert same(weights(whole), resumed.state_dict())


def test_zeros_of_masks_stay(teacher):
    student, mask = perturbed(teacher), torch.rand(12, 8, 3, 3) > 0.5
    with torch.no_grad():
        student.conv2.weight *= mask
    found, _ = run(Matching(student, teacher, judged(teacher), Match(steps=30), masks={"conv2.weight": mask}))
    assert not found.conv2.weight[~mask].any()
    assert not torch.equal(found.conv2.weight, student.conv2.weight)


def test_what_is_not_finite_is_said(teacher):
    student = perturbed(teacher)
    with torch.no_grad():
        student.conv2.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ConvergenceError, match="match: the outputs are not finite"):
        run(Matching(student, teacher, judged(teacher), Match(steps=3)))


def test_relative_error_by_hand():
    expected = torch.tensor([[[1.0, 3.0], [10.0, 10.0]], [[5.0, 3.0], [12.0, 8.0]]])  # (2, channels 2, 2)
    found = expected + 1
    assert float(relative_error(found, expected)) == pytest.approx(1 / 2.0)  # variances 2 and 2
    assert float(relative_error(found.mT, expected.mT, -1)) == pytest.approx(1 / 2.0)
    assert float(relative_error(expected, expected)) == 0


def test_layers_that_hardly_vary_do_not_drown_the_others(teacher):
    with torch.no_grad():
        teacher.conv2.weight[:] = 0
        teacher.conv2.bias[:] = 0
    student = perturbed(teacher)
    with torch.no_grad():
        student.conv2.weight.normal_(std=0.01)
        student.conv2.bias += 0.2
    work = Matching(student, teacher, judged(teacher), Match(steps=60), {"conv1": None, "conv2": None})
    found, _ = run(work)
    assert dict(work.found.looks)[work.found.best] < 0.1 * work.found.looks[0][1]
    assert not torch.equal(found.conv1.weight, student.conv1.weight)
    still = torch.full((3, 2), 5.0)
    assert float(relative_error(still + 1, still)) == pytest.approx(1 / (1e-3 * 25))
    assert float(relative_error(still, torch.zeros(3, 2))) == 0


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_masked_attention_is_matched_by_its_outputs():
    torch.manual_seed(0)
    teacher = trace(Attending().double().eval(), SHAPE)
    student = perturbed(teacher)
    mask = torch.rand(24, 8) > 0.5
    with torch.no_grad():
        student.attention.in_proj_weight *= mask
    layers = {"attention": None, "embed": None}
    work = Matching(student, teacher, judged(teacher), Match(steps=30), layers, {"attention.in_proj_weight": mask})
    found, _ = run(work)
    assert work.found.best > 0
    assert not found.attention.in_proj_weight[~mask].any()


def test_a_stopped_one_keeps_the_best_weights_that_it_had(teacher):
    student, kept = perturbed(teacher), []
    run(
        Matching(student, teacher, judged(teacher), Match(steps=20, rate=30.0)),
        lambda saved: kept.append(copy.deepcopy(saved)),
    )
    last = kept[3]["now"]
    best = {name: tensor + 1 for name, tensor in last["best"].items()}
    again = Matching(student, teacher, judged(teacher), Match(steps=20, rate=30.0))
    again.load(kept[3] | {"now": last | {"best": best, "looks": [(0, 1.0), (last["step"], -1.0)]}})  # nothing is below
    found, _ = run(again)
    assert same(best, found.state_dict())


def test_without_batches_there_is_an_end(teacher):
    with pytest.raises(ValueError, match="no batches to match on"):
        run(Matching(teacher, teacher, judged(teacher), Match(steps=2)), batches=lambda epoch, start: [])


class Tokens(nn.Module):
    """Its first layer, called twice, has its channels in the last place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, x):
        x = x.flatten(2)  # (N, 3, 64): three tokens of eight times eight numbers
        return self.head(torch.relu(self.hidden(x[..., :8])) + self.hidden(x[..., 8:16])).mean(1)


def test_channels_of_linear_layers_lie_in_the_last_place():
    torch.manual_seed(0)
    teacher, student = (trace(Tokens(width).double().eval(), SHAPE) for width in (6, 3))
    kept = [0, 2, 5]  # more than there are tokens
    with torch.no_grad():
        student.hidden.weight.copy_(teacher.hidden.weight[kept] + 0.1)
        student.hidden.bias.copy_(teacher.hidden.bias[kept])

    def distance(places):
        work = Matching(student, teacher, judged(teacher), Match(steps=100), places)
        found, _ = run(work)
        assert work.found.best > 0
        return float((found.hidden.weight - teacher.hidden.weight[kept]).detach().norm())

    assert distance({"hidden": torch.tensor(kept)}) < 0.9 * distance({})
