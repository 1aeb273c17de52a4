"""The analyses of training, through the program."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from compresskit.commands.analyses import by_quantity
from compresskit.training.loop import History
from tests.digits import write_recipe

RECIPE = """\
name: net
model: {kind: smallnet, kernel: 5}
data: {kind: arrays, path: digits.npz, add_channel: true, validation: 64}
train:
  epochs: 2
  batch_size: 64
  optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}
  gradient_confusion: {pairs: 5}
  landscape: {points: 3, samples: 50}
  memorisation: {label_noise: [0.2, 0.8]}
expand:
  strategy: ck
  rate: 2
  compare:
    SmallNet: {strategy: none}
report: {latency_repeats: 2}
trials: 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE, 200)


def tables(run: str) -> dict[str, list]:
    return {table["title"]: table["rows"] for table in json.loads(Path(run, "report.json").read_text())["tables"]}


def test_expand_compares_the_networks_in_each(recipe, call):
    outcome = call("expand", recipe, "--out", "run")
    assert outcome.status == 0, outcome.err
    assert {path.name for path in Path("run").iterdir()} >= {
        "gradient-confusion.png", "landscape.png", "landscape.json", "memorisation", "training-curves.png"
    }  # fmt: skip
    found = tables("run")
    cosines = found["cosines of gradients of pairs of batches after the last epoch"]
    assert [row[0] for row in cosines] == ["ck, rate 2", "SmallNet"]
    assert all(len(row[1]) == 2 for row in cosines)  # one value a trial
    assert [row[0] for row in found["loss around the trained nets, training images"]] == ["ck, rate 2", "SmallNet"]
    errors = found["errors under corrupted labels, %"]
    assert [(row[0], row[1]) for row in errors] == [
        ("20%", "ck, rate 2"), ("20%", "SmallNet"), ("80%", "ck, rate 2"), ("80%", "SmallNet")
    ]  # fmt: skip
    assert min(errors[3][4]) > 50  # most labels are random, and two epochs do not memorise them
    before = Path("run/report.json").read_bytes()
    again = call("expand", recipe, "--out", "run", "--resume")
    assert again.status == 0, again.err
    assert "loss around" in outcome.err
    assert "loss around" not in again.err  # the landscapes are there
    fresh, old = (json.loads(text)["tables"][2:] for text in (Path("run/report.json").read_bytes(), before))
    assert fresh == old  # the first two hold times


def test_train_does_it_for_one_network(recipe, call):
    outcome = call("train", recipe, "trials=1", "report.plots=false", "--out", "run")
    assert outcome.status == 0, outcome.err
    assert len(tables("run")) == 4
    assert not list(Path("run").glob("*.png"))
    assert len(json.loads(Path("run/landscape.json").read_text())["surfaces"]["net"]["loss"]) == 3


def test_a_landscape_of_the_error_is_drawn_of_classifiers_alone(recipe, call, tmp_path):
    changes = ("trials=1", "train.epochs=1", "~train.memorisation", "~train.gradient_confusion")
    outcome = call("train", recipe, *changes, "train.landscape.drawn=error", "--out", "run")
    assert outcome.status == 0, outcome.err
    (table,) = [rows for title, rows in tables("run").items() if title.startswith("error around")]
    surfaces = json.loads(Path("run/landscape.json").read_text())["surfaces"]["net"]
    assert table[0][1] == pytest.approx(1 - surfaces["accuracy"][1][1])
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["inputs"], file["targets"] = np.zeros((40, 3), np.float32), np.zeros((40, 1), np.float32)
    numbers = ("model={kind: mlp, widths: [4]}", "data={kind: arrays, path: data.h5, task: regression}")
    refused = call("train", recipe, *changes, *numbers, "train.landscape.drawn=error", "--out", "other")
    assert refused.status == 2
    assert "train.landscape.drawn: error is a classifier's; of regression draw the loss" in refused.err


def test_runs_on_corrupted_labels_measure_no_gradients(recipe, call):
    changes = ("trials=1", "train.epochs=1", "~train.landscape", "train.memorisation.label_noise=[0.075]")
    outcome = call("train", recipe, *changes, "--out", "run")
    assert outcome.status == 0, outcome.err
    assert "gradient_cosine_min" in Path("run/metrics.csv").read_text()
    assert "gradient" not in Path("run/memorisation/noise-7.5/0-net/trial-1/metrics.csv").read_text()


def test_finetune_draws_its_cosines(recipe, call):
    plain = ("trials=1", "~train.gradient_confusion", "~train.landscape", "~train.memorisation")
    assert call("train", recipe, *plain, "--out", "run").status == 0
    section = "finetune={epochs: 1, batch_size: 64, gradient_confusion: {pairs: 2}}"
    outcome = call("finetune", recipe, *plain, section, "-c", "run", "--out", "tuned")
    assert outcome.status == 0, outcome.err
    assert Path("tuned/gradient-confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads(Path("tuned/report.json").read_text())["details"]["gradient cosines"]["net"][0]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.label_noise=0.1", "train.memorisation: data.label_noise is set as well; leave one of them out"),
        ("train.memorisation.label_noise=[1.5]", "train.memorisation.label_noise.0: must be"),
        ("train.gradient_confusion.pairs=0", "train.gradient_confusion.pairs: must be a"),
        ("train.gradient_confusion.pairs=1", "train.gradient_confusion.pairs: must be a"),
        ("train.landscape.points=2", "train.landscape.points: must be a"),
        ("train.landscape.points=4", "points: 4 a side have no middle"),
        ("train.memorisation.label_noise=[0.2,0.2]", "label_noise: [0.2, 0.2]; give one level or more, each once"),
        ("train.memorisation.label_noise=[]", "label_noise: []; give one level or more, each once"),
    ],
)
def test_refusals(recipe, call, change, message):
    for verb in ("train", "expand"):
        outcome = call(verb, recipe, change)
        assert outcome.status == 2
        assert message in outcome.err
    assert not Path("runs").exists()


def test_learning_curves_have_a_panel_for_each_quantity_and_a_curve_for_each_trial():
    rows = [{"epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_loss": 3.0, "val_mean_iou": 0.5}]
    again = [row | {"train_loss": 4.0} for row in rows]
    trials = [History(each, "val_loss", 1, 3.0, {}, 1.0) for each in (rows, again)]
    assert by_quantity(trials) == {
        "loss": {"training images": [[2.0], [4.0]], "validation images": [[3.0], [3.0]]},
        "mean iou": {"validation images": [[0.5], [0.5]]},
    }


@pytest.mark.parametrize("plots", [True, False])
def test_training_ends_with_its_learning_curves_unless_plots_are_off(recipe, call, plots):
    bare = ("~train.landscape", "~train.memorisation", "~train.gradient_confusion", f"report.plots={plots}".lower())
    assert call("train", "net.yaml", "--out", "run", "train.epochs=1", *bare).status == 0
    assert Path("run/learning-curves.png").exists() == plots
    rows = json.loads(Path("run/report.json").read_text())["details"]["trials"][0]["rows"]
    drawn = by_quantity([History(rows, "val_accuracy", 1, 0.0, {}, 0.0)])
    both = {"training images", "validation images"}
    assert {quantity: set(curves) for quantity, curves in drawn.items()} == {"loss": both, "accuracy": both}
