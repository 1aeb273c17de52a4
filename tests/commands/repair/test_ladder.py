"""The ladder of repairs on the command line: what it reports, that it sees no label, and that it can be interrupted."""

import json
from pathlib import Path

import pytest
import torch

from compresskit.commands.repair import ladder
from compresskit.commands.repair.ladder import Rung, ladder_table, metrics_of
from compresskit.storage.checkpoint import load
from tests.commands.conftest import RECIPE
from tests.commands.test_bad_input import refused

PRUNE = """\
prune:
  target: {macs: 50%}
  criterion: backward
  budget: {kind: divergence, images: 64}
  samples: 300
  held_out: 200
  match: {steps: 20}
reconstruct:
  target: {params: 20%}
  held_out: 200
  match: {steps: 20}
"""
MASKS = ["prune={kind: weights, target: {sparsity: 90%}, samples: 300, held_out: 200, match: {steps: 20}}"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE + PRUNE)
    return path


def report(folder: str) -> dict:
    return json.loads((Path(folder) / "report.json").read_text())


def rungs(folder: str) -> list[dict]:
    (trial,) = report(folder)["details"]["trials"]
    return trial["rungs"] if "rungs" in trial else trial["steps"][-1]["rungs"]


def table(folder: str, title: str) -> list[list]:
    (found,) = [table for table in report(folder)["tables"] if table["title"] == title]
    return found["rows"]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load(Path(folder) / "model.pt").network.state_dict()


def same(one: str, other: str) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("verb", ["prune", "reconstruct"])
def test_each_rung_is_judged_without_labels_and_reported(call, recipe, trained, verb):
    source = ("-c", trained / "runs/net-train")
    for out, noise in (("out", 0), ("other", 0.9)):
        outcome = call(verb, recipe, *source, "--out", out, f"data.label_noise={noise}")
        assert outcome.status == 0, outcome.err
    found = rungs("out")
    assert [rung["name"] for rung in found][-1] == "match"
    taken = [rung["divergence"] for rung in found if rung["taken"]]
    assert taken == sorted(taken, reverse=True)
    assert found[-1]["taken"]
    assert [row[0] for row in table("out", "repairs")] == [rung["name"] for rung in found]
    assert same("out", "other")  # nine of ten training labels are others
    assert load(Path("out/model.pt")).history[-1]["metrics"] == found[-1]["metrics"]


@pytest.mark.parametrize("verb", ["prune", "reconstruct"])
def test_one_killed_while_it_matches_goes_on_from_there(call, recipe, trained, verb, monkeypatch):
    source = ("-c", trained / "runs/net-train")
    assert call(verb, recipe, *source, "--out", "whole").status == 0
    looks, write = [], ladder.write_tensors

    def killed(path, content):
        write(path, content)
        looks.append(content["work"]["step"])
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "write_tensors", killed)
    assert call(verb, recipe, *source, "--out", "out").status == 130
    assert not Path("out/model.pt").exists()
    monkeypatch.setattr(ladder, "write_tensors", lambda path, content: looks.append(content["work"]["step"]))
    outcome = call(verb, recipe, *source, "--out", "out", "--resume")
    assert outcome.status == 0, outcome.err
    assert looks == list(range(0, 21, 2))
    assert same("whole", "out")


def test_what_makes_things_worse_is_not_taken_and_said(call, recipe, trained):
    outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--out", "out", "prune.match.rate=30")
    assert outcome.status == 0, outcome.err
    before, match = rungs("out")[-2:]
    assert not match["taken"]
    assert match["divergence"] == pytest.approx(min(rung["divergence"] for rung in rungs("out")), rel=1e-5)
    assert any(note.startswith("match: not taken in 1 of 1 cases") for note in report("out")["notes"])


def test_steps_without_retraining(call, recipe, trained):
    outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--out", "out", "prune.steps=2")
    assert outcome.status == 0, outcome.err
    titles = [table["title"] for table in report("out")["tables"]]
    assert {"step 1: repairs", "step 2: repairs"} <= set(titles)
    assert report("out")["targets"][0]["met"]
    refused(
        call("prune", recipe, "-c", trained / "runs/net-train", "prune.steps=2", "~prune.match"), 2, "add `match` or"
    )


def test_masked_weights_stay_zero_and_can_be_compared(call, recipe, trained):
    outcome = call(
        "prune", recipe, *MASKS, "-c", trained / "runs/net-train", "--out", "out", "prune.compare={match: [null, {}]}"
    )
    assert outcome.status == 0, outcome.err
    checkpoint = load(Path("out/model.pt"))
    for name, mask in checkpoint.masks.items():
        assert not checkpoint.network.state_dict()[name][~mask].any()
    assert [row[0] for row in table("out", "comparison")] == ["no match", "match"]
    refused(
        call("prune", recipe, *MASKS, "prune.budget=divergence", "-c", trained / "runs/net-train"), 2,
        "unknown kind 'divergence'",
    )  # fmt: skip


def test_rungs_of_several_trials_share_a_table():
    one = [Rung("cut", 2.0, {"accuracy": 0.1}, 0.0, True), Rung("norms", 1.0, {"accuracy": 0.4}, 1.26, True)]
    other = [Rung("cut", 3.0, {"accuracy": 0.2}, 0.0, True), Rung("norms", 4.0, {"accuracy": 0.1}, 2.0, False)]
    assert metrics_of(one) == {"accuracy": 0.4}
    assert metrics_of(other) == {"accuracy": 0.2}
    found = ladder_table("repairs", [one, other])
    assert found.rows[1] == ("norms", (1.0, 4.0), (0.4, 0.1), (1.3, 2.0), "not taken in 1 of 2")
    assert found.rows[0][-1] == ""
