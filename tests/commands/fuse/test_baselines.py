"""Networks of random weights beside the fused ones: for how long they are trained, and what the report says of it."""

import json
from pathlib import Path

import pytest
import torch

from compresskit.commands.fuse.baselines import baselines, epochs_in, lengthened
from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.errors import RecipeError
from compresskit.storage.checkpoint import load
from compresskit.training.optimization.schedules import Cosine, MultiStep, Step
from compresskit.training.options import Training

RETRAIN = Training(epochs=4, schedule=MultiStep(milestones=(2, 3), warmup=0.5))
CHAINS = (("conv2", "head"),)
BOTH = "fuse={layers: [[conv3, head], [conv2, head]], retrain: {epochs: 1, batch_size: 64}, baseline: both}"


def history(*entries: tuple[str, dict]) -> list[dict]:
    return [{"verb": verb, "recipe": recipe} for verb, recipe in entries]


def test_the_whole_training_is_that_of_the_net_before_and_of_all_steps():
    options = FuseAndRetrain(layers=CHAINS, retrain=RETRAIN, baseline="both")
    assert {name: t.epochs for name, t in baselines(options, 10, 3).items()} == {"random": 4, "whole": 22}
    options = FuseAndRetrain(layers=CHAINS, retrain=RETRAIN, baseline="whole")
    assert {name: t.epochs for name, t in baselines(options, 10, 1).items()} == {"whole": 14}
    options = FuseAndRetrain(layers=CHAINS, retrain=RETRAIN, baseline=Training(epochs=7))
    assert {name: t.epochs for name, t in baselines(options, None, 1).items()} == {"random": 7}


def test_a_net_of_unknown_training_is_refused_with_what_to_write_instead():
    options = FuseAndRetrain(layers=CHAINS, retrain=RETRAIN, baseline="whole")
    with pytest.raises(RecipeError, match=r"whole trains for as long .* baseline: \{epochs: 40\}"):
        baselines(options, None, 1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (MultiStep(milestones=(2, 3), warmup=0.5), MultiStep(milestones=(5, 8), warmup=0.5)),
        (Step(step_size=1), Step(step_size=2)),
        (Cosine(final=0.1), Cosine(final=0.1)),
    ],
)
def test_longer_training_keeps_the_shape_of_its_schedule(schedule, expected):
    longer = lengthened(Training(epochs=4, schedule=schedule), 10)
    assert (longer.epochs, longer.schedule) == (10, expected)


def test_epochs_are_those_of_the_verbs_that_trained():
    train, tune = {"train": {"epochs": 5}, "finetune": {"epochs": 3}}, {"finetune": {"epochs": 3}}
    assert epochs_in(history(("train", train))) == 5
    assert epochs_in(history(("train", train), ("prune", {"prune": {}}), ("finetune", tune))) == 8
    stages = {"stages": ["expand", "train"]}
    assert epochs_in(history(("expand", train | {"expand": stages}))) == 5
    contracted = ("expand", train | {"expand": {"stages": ["contract"]}})
    assert epochs_in(history(("expand", train | {"expand": stages}), contracted)) == 5
    assert epochs_in(history(("expand", train | {"expand": stages | {"compare": {"x": {}}}}))) is None
    assert epochs_in([{"verb": "finetune", "recipe": tune, "parent": "of elsewhere"}]) is None
    assert epochs_in(history(("train", train | {"model": {"weights": "net.pt"}}))) is None
    assert epochs_in(history(("train", train), ("prune", {"prune": {"retrain": {"epochs": 1}}}))) is None
    assert epochs_in(history(("reconstruct", {"reconstruct": {"retrain": None}}))) is None
    assert epochs_in([]) is None


def test_the_report_has_both_baselines_their_cost_and_all_curves(call, recipe, monkeypatch):
    drawn = []
    monkeypatch.setattr("compresskit.commands.fuse.report.learning_curves", lambda *given: drawn.append(given))
    deeper = ("model.channels=[2, 4, 4]", "train.epochs=3", "data.limit=200", "--quiet")
    assert call("train", recipe, *deeper).status == 0
    start = (recipe, "model.channels=[2, 4, 4]", "data.limit=200", "-c", "runs/net-train", BOTH)
    outcome = call("fuse", *start)
    assert outcome.status == 0, outcome.err
    found = json.loads(Path("runs/net-fuse/report.json").read_text())
    first, second = found["details"]["trials"][0]["steps"]
    assert [step["epochs"] for step in (first, second)] == [4, 5]
    lengths = [{name: b["epochs"] for name, b in step["baselines"].items()} for step in (first, second)]
    assert lengths == [{"random": 1, "whole": 4}, {"random": 1, "whole": 5}]
    assert [len(b["curve"]) for b in second["baselines"].values()] == [1, 5]
    (table,) = [table for table in found["tables"] if table["title"].startswith("training")]
    macs = found["figures"]
    before = next(figure["before"][0] for figure in macs if figure["name"] == "MACs")
    shares = [step["macs"] / before for step in (first, second)]
    assert [row[2] for row in table["rows"]] == pytest.approx([3, 3 + shares[0], 3 + shares[0] + shares[1]])
    assert table["rows"][2][5:] == pytest.approx([5, 5 * shares[1]])
    (networks,) = [table for table in found["tables"] if table["title"] == "networks"]
    trained = {row[0]: row[networks["columns"].index("accuracy, trained")] for row in networks["rows"]}
    assert trained["2-4-4"] == next(figure["before"] for figure in macs if figure["name"] == "test accuracy")
    assert [row[1] for row in networks["rows"]] == ["", *([step["fused"]["accuracy"]] for step in (first, second))]
    (_, panels, metric), *_ = drawn
    assert metric == "val_accuracy"
    assert [list(starts) for starts in panels.values()] == [
        ["fused", "from random", "from random, whole training", "2-4-4"]
    ] * 2
    assert [len(curve) for curve in panels["1: 2-4"]["2-4-4"]] == [3]


def test_a_checkpoint_alone_has_no_curve_and_that_is_said(call, recipe, trained, tmp_path):
    (tmp_path / "alone.pt").write_bytes((trained / "runs/net-train/model.pt").read_bytes())
    short = "fuse={layers: [[conv2, head]], retrain: {epochs: 1, batch_size: 64}}"
    assert call("fuse", recipe, short, "-c", "alone.pt", "--out", "out", "--quiet").status == 0
    notes = json.loads(Path("out/report.json").read_text())["notes"]
    assert any("no metrics.csv with val_accuracy lies beside its checkpoint" in note for note in notes)


def test_bare_weights_do_not_tell_their_training(call, recipe, trained):
    torch.save(load(trained / "runs/net-train/model.pt").network.state_dict(), "weights.pt")
    outcome = call("fuse", recipe, BOTH.replace("[conv3, head], ", ""), "-c", "weights.pt", "--out", "out")
    assert outcome.status != 0
    assert "its checkpoint does not tell" in " ".join(outcome.err.split())
    assert not Path("out").exists()
