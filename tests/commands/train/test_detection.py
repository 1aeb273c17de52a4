"""A detector from its images to its mAP, through the same verbs as a classifier."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compresskit.storage.checkpoint import load
from tests.commands.conftest import program
from tests.scenes import Scene, draw, write_voc_detection

RECIPE = """\
model: {kind: yolo-lite, batch_norm: true}
data:
  kind: voc-detection
  root: .
  train: [2007]
  classes: ["0"]
  size: 32
  anchors: [[0.3, 0.3]]
  crop: false
  flip: false
  colour: false
  workers: 0
train: {epochs: 6, batch_size: 16, optimizer: {kind: adam, lr: 3e-3}}
finetune: {epochs: 1, batch_size: 16, optimizer: {kind: adam, lr: 1e-4}, loss: {kind: yolo, coordinate: 2.0}}
report: {latency_repeats: 2}
"""


def as_one_class(scenes: list[Scene]) -> list[Scene]:
    """To find digits is learnt in seconds, to tell them apart in minutes."""
    return [replace(scene, boxes=[(0, *box) for _, *box in scene.boxes]) for scene in scenes]


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """A folder with a set, net.yaml and a finished run of `train`."""
    folder = tmp_path_factory.mktemp("detected")
    write_voc_detection(folder, as_one_class(draw(300, 32, seed=1)), "trainval")
    write_voc_detection(folder, as_one_class(draw(60, 32, seed=2)), "test")
    (folder / "net.yaml").write_text(RECIPE)
    done = program("train", "net.yaml", cwd=folder)
    assert done.status == 0, done.err
    assert "test_map" in done.err
    return folder


def figures(folder: Path) -> dict[str, float]:
    report = json.loads((folder / "report.json").read_text())
    return {figure["name"]: figure["after"][0] for figure in report["figures"]}


def test_training_raises_the_map(detected):
    raw = ("train.epochs=1", "data.limit=16", "train.optimizer.lr=1e-9", "--out", "raw")
    done = program("train", "net.yaml", *raw, cwd=detected)
    assert done.status == 0, done.err
    before, after = (figures(detected / run)["test map"] for run in ("raw", "runs/net-train"))
    assert before < 0.03
    assert after > 0.4
    columns = (detected / "runs/net-train/metrics.csv").read_text().splitlines()[0].split(",")
    held = ["test_map", "test_map@voc07", "test_loss"]
    assert columns == ["epoch", "step", "lr", "train_loss", *held, "seconds", "images_per_second"]


def test_evaluate_says_what_training_said(detected):
    done = program("evaluate", "net.yaml", "-c", "runs/net-train", "--json", cwd=detected)
    assert done.status == 0, done.err
    found = {figure["name"]: figure["after"][0] for figure in json.loads(done.out)["figures"]}
    trained = figures(detected / "runs/net-train")
    for name in ("test map", "test map@voc07", "test loss"):
        assert found[name] == pytest.approx(trained[name], rel=1e-6)  # float32 forward passes


def test_finetune_goes_on_from_there(detected):
    done = program("finetune", "net.yaml", "-c", "runs/net-train", cwd=detected)
    assert done.status == 0, done.err
    checkpoint = load(detected / "runs/net-finetune/model.pt")
    assert checkpoint.task == "detection"
    assert [entry["verb"] for entry in checkpoint.history] == ["train", "finetune"]
    assert figures(detected / "runs/net-finetune")["test map"] > 0.4


@pytest.mark.parametrize(
    ("verb", "override", "status", "message"),
    [
        ("finetune", "data.classes=['0', '1']", 1, "it has 6 outputs, the recipe's data 7"),
        ("finetune", "finetune.loss={kind: mse}", 2, "the data set is for detection; use yolo"),
        ("finetune", "finetune.monitor=accuracy", 2, "the data set is for detection; use map or map@voc07 or loss"),
        ("finetune", "data.label_noise=0.5", 1, "leave it out for detection"),
    ],
)
def test_what_does_not_fit_is_refused(call, detected, monkeypatch, verb, override, status, message):
    monkeypatch.chdir(detected)
    outcome = call(verb, "net.yaml", override, "-c", "runs/net-train", "--dry-run")
    assert outcome.status == status
    assert message in outcome.err


def test_a_missing_package_is_found_before_training(call, detected, monkeypatch):
    monkeypatch.chdir(detected)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    outcome = call("train", "net.yaml", "--dry-run")
    assert outcome.status == 2
    assert "pip install 'compresskit[detection]'" in outcome.err
