"""A student under each kind of teacher: its loss, gradients, regressors and resumed runs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from compresskit.distributed import Group
from compresskit.errors import RecipeError, RunFolderError
from compresskit.numerics.distillation import hint, probabilistic_transfer, soft_targets
from compresskit.training.distillation import DISTILLATIONS, KD, PKT, Distiller, Hint
from compresskit.training.trainer import Trainer

CPU = torch.device("cpu")
KINDS = {
    "kd": KD(teacher="t", weight=0.7, temperature=3.0),
    "hint": Hint(teacher="t", weight=0.5, layers=(("0", "first"),)),
    "pkt": PKT(teacher="t", weight=2.0),
}


def teacher() -> fx.GraphModule:
    """Wider than the student, with dropout and a batch norm of statistics of its own."""
    torch.manual_seed(11)
    layers = nn.Sequential()
    for name, layer in {
        "first": nn.Linear(6, 20), "norm": nn.BatchNorm1d(20), "act": nn.ReLU(), "drop": nn.Dropout(0.5),
        "head": nn.Linear(20, 3),
    }.items():  # fmt: skip
        layers.add_module(name, layer)
    nn.init.uniform_(layers.norm.running_var, 0.5, 2.0)
    return fx.symbolic_trace(layers)


def test_every_kind_is_tried_here():
    assert KINDS.keys() == DISTILLATIONS.keys()


def expected(kind, student, tutor, inputs, targets, regress):
    """Loss and term, from the formulas and plain calls of the layers."""
    output, known = student(inputs), tutor.eval()(inputs)
    loss = functional.cross_entropy(output, targets)
    if kind == "kd":
        term = soft_targets(output, known, 3.0)
        return 0.3 * loss + 0.7 * term, term
    if kind == "hint":
        term = hint(regress(student.get_submodule("0")(inputs)), tutor.first(inputs))
        return loss + 0.5 * term, term
    before_head = [net[:-1](inputs) for net in (_sequence(student), _sequence(tutor))]
    term = probabilistic_transfer(*before_head)
    return loss + 2.0 * term, term


def _sequence(network):
    return nn.Sequential(*network.children())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_follows_the_formula(tiny, kind):
    student, tutor, data = tiny.network(dropout=0.0), teacher(), tiny.dataset()
    options = replace(tiny.OPTIONS, distill=KINDS[kind])
    trainer = Trainer(student, data, options, 3, CPU, Group(), tutor)
    student.train()
    twin, regressors = copy.deepcopy(student), copy.deepcopy(trainer.regressors)
    inputs, targets = next(data.train.batches(10, CPU, seed=1))
    loss, _, term = trainer._step(inputs, targets)
    regress = regressors[0] if len(regressors) else None
    wanted, wanted_term = expected(kind, twin, tutor, inputs, targets, regress)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=1e-6)  # float32
    torch.testing.assert_close(term, wanted_term.detach(), rtol=1e-5, atol=1e-6)
    wanted.backward()
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    if kind == "hint":
        assert regressors[0].weight.shape == (20, 8)
        torch.testing.assert_close(trainer.regressors[0].weight.grad, regressors[0].weight.grad, rtol=1e-4, atol=1e-6)
        assert not torch.equal(trainer.regressors[0].weight, regressors[0].weight)  # it learns, too


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_never_changed_and_runs_once_a_batch(tiny, tmp_path, kind):
    tutor = teacher()
    before = copy.deepcopy(tutor.state_dict())
    calls = []
    original = fx.GraphModule.__call__

    def counted(self, *args, **kwargs):
        if hasattr(self, "head"):
            calls.append((self.training, torch.is_grad_enabled()))
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fx.GraphModule, "__call__", counted)
        options = replace(tiny.OPTIONS, epochs=2, distill=KINDS[kind])
        net, history = tiny.run(tmp_path, options, teacher=tutor)
    after = tutor.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in tutor.parameters())  # the caller's is a copy's source
    assert calls.count((True, False)) == 0
    assert len([call for call in calls if not call[1]]) == 2 * 5  # epochs times steps
    assert history.rows[-1]["distill_loss"] < history.rows[0]["distill_loss"]
    assert [name for name in net.state_dict() if "regress" in name] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_tensors(tiny, tmp_path, kind):
    options = replace(tiny.OPTIONS, distill=KINDS[kind])
    whole, _ = tiny.run(tmp_path / "whole", options, teacher=teacher())

    class Stop(Exception):
        pass

    class StopAfterTwo:
        def on_step(self, epoch, step, steps):
            if epoch == 3:
                raise Stop

        def on_epoch(self, row):
            pass

    with pytest.raises(Stop):
        tiny.run(tmp_path / "killed", options, teacher=teacher(), progress=StopAfterTwo())
    resumed, history = tiny.run(tmp_path / "killed", options, teacher=teacher(), resume=True)
    assert len(history.rows) == 4
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    other = teacher()
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(RunFolderError, match="made for another run: teacher was"):
        tiny.run(tmp_path / "killed", options, teacher=other, resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_float32_where_the_nets_compute_in_bfloat16(tiny, kind):
    """A student that is its teacher has a term of 0; similarities rounded to bfloat16 would make it 1e-3."""
    student = teacher().eval()
    options = replace(KINDS[kind], layers=(("first", "first"),)) if kind == "hint" else KINDS[kind]
    distiller = Distiller(student, student, options, (6,), 0)
    with torch.no_grad():
        student.norm.bias += 0.01
    inputs = tiny.dataset().train.inputs
    expected = distiller.loss(torch.zeros(()), distiller.student(inputs), inputs)[1]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = distiller.student(inputs)
        _, term = distiller.loss(torch.zeros(()), outputs, inputs)
    assert term.dtype == torch.float32
    torch.testing.assert_close(term, expected, rtol=0, atol=1e-4)  # the nets' own rounding


def test_maps_of_other_sizes_are_averaged_and_their_channels_mapped():
    student = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 3)))
    tutor = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.Flatten(), nn.Linear(6 * 9, 3)))
    distiller = Distiller(student, tutor, Hint(teacher="t", layers=(("0", "0"),)), (1, 8, 8), 0)
    x = torch.randn(2, 1, 8, 8)
    outputs = distiller.student(x)
    _, term = distiller.loss(torch.zeros(()), outputs, x)
    (regress,) = distiller.regressors
    pooled = functional.adaptive_avg_pool2d(regress(student.get_submodule("0")(x)), 3)
    torch.testing.assert_close(term, hint(pooled, tutor.get_submodule("0")(x)).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Hint(teacher="t", layers=(("9", "first"),)), "distill.layers: the student has no layer '9'"),
        (Hint(teacher="t", layers=(("0", "frist"),)), "the teacher has no layer 'frist'; did you mean 'first'"),
    ],
)
def test_layers_that_do_not_exist_are_refused(tiny, options, message):
    with pytest.raises(RecipeError) as refusal:
        Distiller(tiny.network(), teacher(), options, (6,), 0)
    assert message in str(refusal.value)


def test_maps_are_not_compared_with_features():
    student = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)))
    with pytest.raises(RecipeError, match="compare maps with maps, and features with features"):
        Distiller(student, student, Hint(teacher="t", layers=(("0", "2"),)), (1, 8, 8), 0)
    with pytest.raises(RecipeError, match="the student has no linear layer whose inputs could be compared"):
        Distiller(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3))), student, PKT(teacher="t"), (1, 8, 8), 0)


def test_options_without_a_teacher_are_the_callers_mistake(tiny, tmp_path):
    with pytest.raises(ValueError, match="which the caller must load"):
        tiny.run(tmp_path, replace(tiny.OPTIONS, distill=KINDS["kd"]))
