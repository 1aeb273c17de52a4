"""A U-Net from its images to its mIoU, through the same verbs as a classifier."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compresskit.storage.checkpoint import load
from tests.commands.conftest import program
from tests.scenes import Scene, draw, write_cityscapes, write_voc_segmentation

RECIPE = """\
model: {kind: unet, width: 4, depth: 2}
data: {kind: voc-segmentation, root: ., size: [64, 64], classes: 2, workers: 0}
train: {epochs: 4, batch_size: 16, optimizer: {kind: adam, lr: 1e-2}}
finetune: {epochs: 1, batch_size: 16, optimizer: {kind: adam, lr: 1e-4}}
expand: {strategy: cl, rate: 2}
report: {latency_repeats: 2}
"""


def as_one_class(scenes: list[Scene]) -> list[Scene]:
    """To find digits is learnt in seconds, to tell them apart in minutes."""
    return [replace(scene, mask=np.minimum(scene.mask, 1)) for scene in scenes]


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A folder with a set in both layouts, net.yaml and a finished run of `train`."""
    folder = tmp_path_factory.mktemp("segmented")
    for part, count, seed in (("train", 160, 1), ("val", 40, 2)):
        scenes = as_one_class(draw(count, 64, seed))
        write_voc_segmentation(folder, scenes, part)
        write_cityscapes(folder, scenes, part)
    (folder / "net.yaml").write_text(RECIPE)
    done = program("train", "net.yaml", cwd=folder)
    assert done.status == 0, done.err
    assert "test_miou" in done.err
    return folder


def figures(folder: Path) -> dict[str, float]:
    report = json.loads((folder / "report.json").read_text())
    return {figure["name"]: figure["after"][0] for figure in report["figures"]}


def test_training_finds_the_digits(segmented):
    """Background everywhere has an mIoU of 0.48, and a recall of 0.5."""
    after = figures(segmented / "runs/net-train")
    assert after["test miou"] > 0.8
    assert after["test recall"] > 0.8
    columns = (segmented / "runs/net-train/metrics.csv").read_text().splitlines()[0].split(",")
    tests = [f"test_{name}" for name in ("miou", "recall", "precision", "accuracy", "loss")]
    assert columns == ["epoch", "step", "lr", "train_loss", *tests, "seconds", "images_per_second"]


def test_evaluate_says_what_training_said(segmented):
    done = program("evaluate", "net.yaml", "-c", "runs/net-train", "--json", cwd=segmented)
    assert done.status == 0, done.err
    found = {figure["name"]: figure["after"][0] for figure in json.loads(done.out)["figures"]}
    trained = figures(segmented / "runs/net-train")
    for name in ("miou", "recall", "precision", "accuracy", "loss"):
        assert found[f"test {name}"] == pytest.approx(trained[f"test {name}"], rel=1e-3)  # float32, other batches


def test_finetune_goes_on_from_there(segmented):
    done = program("finetune", "net.yaml", "-c", "runs/net-train", cwd=segmented)
    assert done.status == 0, done.err
    checkpoint = load(segmented / "runs/net-finetune/model.pt")
    assert (checkpoint.task, [entry["verb"] for entry in checkpoint.history]) == ("segmentation", ["train", "finetune"])
    assert figures(segmented / "runs/net-finetune")["test miou"] > 0.8


def test_cityscapes_trains_too(segmented):
    options = ("data={kind: cityscapes, root: ., size: [64, 64], workers: 0}", "train.epochs=3", "--out", "cities")
    quick = ("train.batch_size=4", "train.optimizer.lr=0.05")  # 17 of the 19 classes are first to be unlearnt
    done = program("train", "net.yaml", *options, *quick, cwd=segmented)
    assert done.status == 0, done.err
    assert figures(segmented / "cities")["test recall"] > 0.8  # 0.5 for background everywhere


@pytest.mark.parametrize(
    ("verb", "override", "status", "message"),
    [
        ("finetune", "data.classes=3", 1, "it has 2 outputs, the recipe's data 3"),
        ("finetune", "finetune.loss={kind: mse}", 2, "the data set is for segmentation; use cross-entropy"),
        ("finetune", "finetune.monitor=map", 2, "the data set is for segmentation; use miou or recall or precision"),
        ("finetune", "data.label_noise=0.5", 1, "leave it out for segmentation"),
        ("train", "data.size=[64, 66]", 2, "multiples of 4"),
        ("train", "train.memorisation={}", 2, "it corrupts classes"),
    ],
)
def test_what_does_not_fit_is_refused(call, segmented, monkeypatch, verb, override, status, message):
    monkeypatch.chdir(segmented)
    parent = ("-c", "runs/net-train") if verb == "finetune" else ()
    outcome = call(verb, "net.yaml", override, *parent, "--dry-run")
    assert outcome.status == status, outcome.err
    assert message in outcome.err
