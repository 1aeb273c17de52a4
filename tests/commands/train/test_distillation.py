"""Teachers through the program: students of every kind, and what is refused before any training."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from compresskit.storage.checkpoint import load
from compresskit.training.distillation import DISTILLATIONS

SMALL = "model.channels=[2, 4]"
KINDS = {
    "kd": "{kind: kd, teacher: teacher, temperature: 2}",
    "hint": "{kind: hint, teacher: teacher/model.pt, layers: [[conv1, conv1], [conv2, conv2]]}",
    "pkt": "{kind: pkt, teacher: teacher}",
}


@pytest.fixture(autouse=True)
def teacher(trained: Path, tmp_path: Path) -> Path:
    """The trained net, in the folder `teacher` where the program is started."""
    return shutil.copytree(trained / "runs/net-train", tmp_path / "teacher") / "model.pt"


def test_every_kind_is_tried_here():
    assert KINDS.keys() == DISTILLATIONS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_comes_nearer_to_its_teacher(recipe, call, teacher, kind):
    before = teacher.read_bytes()
    outcome = call("train", recipe, SMALL, "train.epochs=3", f"train.distill={KINDS[kind]}", "--out", "student")
    assert outcome.status == 0, outcome.err
    rows = list(csv.DictReader(Path("student/metrics.csv").read_text().splitlines()))
    assert float(rows[-1]["distill_loss"]) < float(rows[0]["distill_loss"])
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    student = load(Path("student/model.pt"))
    assert {name.partition(".")[0] for name in student.network.state_dict()} == {"conv1", "conv2", "head"}
    assert student.history[-1]["recipe"]["train"]["distill"]["kind"] == kind
    assert teacher.read_bytes() == before


def test_every_section_that_trains_takes_a_teacher(recipe, call):
    distill = f"{{epochs: 1, distill: {KINDS['kd']}}}"
    runs = {
        "finetune": (f"finetune={distill}",),
        "fuse": (f"fuse.retrain={distill}",),
        "reconstruct": (f"reconstruct={{target: {{size: 60%}}, retrain: {distill}}}",),
    }
    for verb, changes in runs.items():
        outcome = call(verb, recipe, *changes, "-c", "teacher", "--out", verb)
        assert outcome.status == 0, outcome.err
        tables = [path.read_text() for path in Path(verb).rglob("metrics.csv")]
        assert [("distill_loss" in table) for table in tables] == [True], verb


REFUSALS = {
    "{kind: kd, teacher: none.pt}": "distill.teacher: none.pt: no such file; name the model.pt of a run that has ended",
    "{kind: kd, teacher: .}": (
        "distill.teacher: .: no model.pt in this folder; name the folder of a run that has ended"
    ),
    "{kind: kd, teacher: five}": (
        "distill.teacher: five/model.pt: it has 5 outputs, the recipe's data 10; use its own data"
    ),
    "{kind: kd, teacher: wide}": (
        "distill.teacher: wide/model.pt: made for classification of inputs (1, 20, 20), the recipe's data is "
        "classification of inputs (1, 28, 28); use the data that the net was trained on"
    ),
    "{kind: hint, teacher: teacher, layers: [[conv3, conv1]]}": (
        "distill.layers: the student has no layer 'conv3'; did you mean 'conv2' or 'conv1'?"
    ),
    "{kind: pkt, teacher: teacher, layers: [[conv1, hed]]}": (
        "distill.layers: the teacher has no layer 'hed'; did you mean 'head'?"
    ),
    "{kind: hint, teacher: teacher, layers: [[conv1, head]]}": (
        "distill.layers: conv1 gives (2, 28, 28), the teacher's head (10,); compare maps with maps, and features with "
        "features"
    ),
}


def images(name: str, side: int, classes: int) -> str:
    """The recipe's data of random images."""
    draws = np.random.default_rng(0)
    inputs = draws.integers(0, 255, (60, 1, side, side), dtype=np.uint8)
    np.savez(f"{name}.npz", inputs=inputs, targets=np.arange(60) % classes)
    return f"data={{kind: arrays, path: {name}.npz}}"


def test_refusals_come_before_any_work(recipe, call, tmp_path):
    for name, side, classes in (("five", 28, 5), ("wide", 20, 10)):
        outcome = call("train", recipe, images(name, side, classes), "train.epochs=1", "--out", name)
        assert outcome.status == 0, outcome.err
    for distill, message in REFUSALS.items():
        for command in (("train",), ("train", "--dry-run"), ("validate", "~finetune", "~fuse")):
            outcome = call(command[0], recipe, SMALL, f"train.distill={distill}", *command[1:])
            assert (outcome.status, outcome.err) == (2, f"error: {message}\n")
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_saw_other_normalised_images_is_refused(recipe, call):
    outcome = call("train", recipe, "data.normalize=none", f"train.distill={KINDS['kd']}")
    assert outcome.status == 2
    assert "error: distill.teacher: teacher/model.pt: trained on inputs of mean" in outcome.err
    assert "(auto or none) as in its training" in outcome.err


def test_soft_targets_are_for_classes(recipe, call, tmp_path):
    draws = np.random.default_rng(0)
    inputs, targets = draws.normal(size=(60, 1, 28, 28)), draws.normal(size=(60, 2))
    np.savez("numbers.npz", inputs=inputs.astype(np.float32), targets=targets.astype(np.float32))
    data = "data={kind: arrays, path: numbers.npz}"
    assert call("train", recipe, data, "train.epochs=1", "--out", "numbers").status == 0
    outcome = call("train", recipe, data, "train.distill={kind: kd, teacher: numbers}")
    message = "distill.kind: kd softens class scores, but the data set is for regression; use hint or pkt"
    assert (outcome.status, outcome.err) == (2, f"error: {message}\n")
    assert call("train", recipe, data, "train.distill={kind: pkt, teacher: numbers}", "train.epochs=1").status == 0


def test_a_student_never_overwrites_its_teacher(recipe, call, teacher):
    for named in ("teacher", "teacher/model.pt"):
        outcome = call("train", recipe, f"train.distill={{kind: kd, teacher: {named}}}", "--out", "teacher", "--force")
        assert outcome.status == 1
        assert outcome.err == f"error: teacher: it holds the teacher {named}; write elsewhere with --out\n"
        assert teacher.exists()
