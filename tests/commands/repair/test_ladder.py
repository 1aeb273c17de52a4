"""The ladder of repairs on the command line: what it reports, that it sees no label, and that it can be interrupted."""

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compresskit.commands import trials
from compresskit.commands.prune.stages import STEP, PruneStep
from compresskit.commands.reconstruct import verb as reconstructing
from compresskit.commands.reconstruct.report import Outcome
from compresskit.commands.repair import fitting, ladder
from compresskit.commands.repair.ladder import Rung, ladder_notes, ladder_table, metrics_of
from compresskit.distributed import Group
from compresskit.passes.prune.channels import Pruner
from compresskit.passes.prune.masks import Masker
from compresskit.passes.repair import matching
from compresskit.report import TerminalProgress
from compresskit.storage.atomic import write_json, write_tensors
from compresskit.storage.checkpoint import load, save
from tests.commands.conftest import RECIPE, report, rows
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


def rungs(folder: str) -> list[dict]:
    (trial,) = report(folder)["details"]["trials"]
    return trial["rungs"] if "rungs" in trial else trial["steps"][-1]["rungs"]


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
    assert [row[0] for row in rows("out", "repairs")] == [rung["name"] for rung in found]
    assert same("out", "other")  # nine of ten training labels are others
    assert load(Path("out/model.pt")).history[-1]["metrics"] == found[-1]["metrics"]


@pytest.mark.parametrize("verb", ["prune", "mask", "reconstruct"])
def test_the_first_rung_costs_what_choosing_does(call, recipe, trained, verb, monkeypatch):
    steps = {"prune": (Pruner, "prune"), "mask": (Masker, "mask"), "reconstruct": (reconstructing, "reconstruct")}
    place, name = steps[verb]
    choose = getattr(place, name)

    def slow(*arguments, **named):
        time.sleep(0.5)
        return choose(*arguments, **named)

    monkeypatch.setattr(place, name, slow)
    own = MASKS if verb == "mask" else []
    asked = ("reconstruct" if verb == "reconstruct" else "prune", recipe, *own, "-c", trained / "runs/net-train")
    assert call(*asked, "--out", "out").status == 0
    assert rungs("out")[0]["seconds"] >= 0.5


@pytest.mark.parametrize("mask", [False, True])
def test_nothing_that_takes_long_is_done_in_silence(call, recipe, mask, monkeypatch):
    told, update = set(), TerminalProgress.update

    def seen(self, done, note=""):
        told.add(self._description)
        update(self, done, note)

    monkeypatch.setattr(TerminalProgress, "update", seen)
    own = [MASKS[0].replace("match", "repair: parallel, match")] if mask else ["prune.criterion=backward"]
    assert call("train", recipe, "model.batch_norm=true", "train.epochs=1").status == 0
    assert call("prune", recipe, *own, "prune.blocks={images: 50}", "-c", "runs/net-train").status == 0
    seed = {f"seed 0: {work}" for work in ("norms, batches", "blocks", "match")}
    assert seed | {"least squares, percent", "evaluation, batches"} <= told
    assert mask or {"what channels are worth, percent", "what each group alone costs, percent"} <= told
    assert any(name.startswith("moments of ") for name in told)


@pytest.mark.parametrize("verb", ["prune", "reconstruct"])
def test_one_killed_while_it_matches_goes_on_from_there(call, recipe, trained, verb, monkeypatch):
    source = ("-c", trained / "runs/net-train")
    assert call(verb, recipe, *source, "--out", "whole").status == 0
    looks, write = [], fitting.write_tensors

    def killed(path, content):
        write(path, content)
        looks.append(content["work"]["now"]["step"])
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "write_tensors", killed)
    assert call(verb, recipe, *source, "--out", "out").status == 130
    assert not Path("out/model.pt").exists()
    assert Path("out/match.pt").exists()
    whole = Path("out/match.pt").read_bytes()
    Path("out/match.pt").write_bytes(whole[: len(whole) // 2])
    refused(call(verb, recipe, *source, "--out", "out", "--resume"), 1, "match.pt: cannot be read", "--force")
    Path("out/match.pt").write_bytes(whole)
    monkeypatch.setattr(fitting, "write_tensors", lambda path, content: looks.append(content["work"]["now"]["step"]))
    outcome = call(verb, recipe, *source, "--out", "out", "--resume")
    assert outcome.status == 0, outcome.err
    assert looks == [0, 2, *range(4, 21, 4)]
    assert not Path("out/match.pt").exists()
    assert same("whole", "out")


BLOCKS = "blocks={layers: 1, images: 64, steps: 1, iterations: 3}"


@pytest.mark.parametrize(("verb", "masks"), [("prune", MASKS), ("prune", []), ("reconstruct", [])])
def test_blocks_are_a_rung_below_that_sees_no_label_and_goes_on(call, recipe, trained, verb, masks, monkeypatch):
    source = ("-c", trained / "runs/net-train")
    asked = (verb, recipe, *masks, *source, f"{verb}.{BLOCKS}", f"~{verb}.match", "data.label_noise=0.9", "--out")
    assert call(*asked, "whole", "data.label_noise=0").status == 0
    saved, write = [], fitting.write_tensors

    def killed(path, content):
        write(path, content)
        saved.append(len(content["work"]["found"]))
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "write_tensors", killed)
    assert call(*asked, "out").status == 130
    assert Path("out/blocks.pt").exists()
    outcome = call(*asked, "out", "--resume")
    assert outcome.status == 0, outcome.err
    assert saved == list(range(saved[-1] + 1))
    assert saved[-1] > 2
    assert not Path("out/blocks.pt").exists()
    assert same("whole", "out")
    found = rungs("out")
    assert found[-1]["name"] == "blocks"
    assert found[-1]["told"] == f"{saved[-1]} blocks, {found[-1]['told'].split()[2]} of {saved[-1]} steps taken"
    assert "steps taken" in rows("out", "repairs")[-1][-1] or not found[-1]["taken"]


def test_one_killed_while_it_repairs_does_not_choose_again(call, recipe, trained, monkeypatch):
    asked = ("prune", recipe, "-c", trained / "runs/net-train", "--out")
    assert call(*asked, "whole").status == 0
    chose, choose, write = [], Pruner.prune, fitting.write_tensors

    def counted(self, data, seed):
        chose.append(seed)
        return choose(self, data, seed)

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pruner, "prune", counted)
    monkeypatch.setattr(fitting, "write_tensors", killed)
    assert call(*asked, "out").status == 130
    known = json.loads(Path("out/chosen.json").read_text())
    monkeypatch.setattr(fitting, "write_tensors", write)
    shutil.copytree("out", "damaged")
    assert call(*asked, "out", "--resume").status == 0
    assert len(chose) == 1
    assert same("whole", "out")
    assert not Path("out/chosen.json").exists()
    assert rungs("out")[0]["seconds"] >= known["seconds"]
    (whole,), (resumed,) = (report(folder)["details"]["trials"] for folder in ("whole", "out"))
    assert whole["steps"][0]["sensitivity"] == resumed["steps"][0]["sensitivity"]
    for text in ('{"groups": [', "[]", json.dumps(known | {"groups": ["others"]})):
        Path("damaged/chosen.json").write_text(text)
        assert call(*asked, "damaged", "--resume").status == 0
        assert same("whole", "damaged")
        for name in ("pruned.json", "report.json"):
            Path("damaged", name).unlink()
    assert len(chose) == 4


def test_steps_may_fit_blocks_alone_and_settings_may_differ_in_them(call, recipe, trained):
    outcome = call(
        "prune", recipe, "-c", trained / "runs/net-train", "--out", "out", "prune.steps=2", "~prune.match",
        f"prune.{BLOCKS}", "prune.compare={blocks: [{layers: 1, images: 64, steps: 1, iterations: 1}], at: [60%]}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert [rung["name"] for rung in rungs("out")][-1] == "blocks"
    (trial,) = report("out")["details"]["comparison"]
    assert "blocks" in trial[0]["blocks"]


@pytest.mark.parametrize(("verb", "masks"), [("prune", MASKS), ("prune", []), ("reconstruct", [])])
def test_the_disk_has_room_for_all_that_is_written_at_a_time(call, recipe, monkeypatch, verb, masks):
    mlp = "model={kind: mlp, widths: [500, 40]}"  # its weights are all of a file, but for a hundredth
    assert call("train", recipe, mlp, "train.epochs=1", "--out", "wide").status == 0
    asked, most, write = [], [0], fitting.write_tensors

    def weighed(path, content):
        before = sum(file.stat().st_size for file in Path("out").rglob("*.pt"))
        write(path, content)
        most.append(before + path.stat().st_size)  # the old file is there until the new one is whole

    monkeypatch.setattr(matching, "ASTRAY", 0.0)  # so that both losses are tried
    monkeypatch.setattr(trials, "check_disk", lambda folder, nbytes: asked.append(nbytes))
    monkeypatch.setattr(fitting, "write_tensors", weighed)
    outcome = call(verb, recipe, mlp, *masks, "-c", "wide", "--out", "out")
    assert outcome.status == 0, outcome.err
    weights = sum(tensor.nbytes for tensor in load(Path("wide/model.pt")).network.state_dict().values())
    assert asked == [16 * weights]
    assert max(most) == pytest.approx(10 * weights, rel=0.02) if masks else max(most) < 10 * weights
    outcome = call(verb, recipe, mlp, *masks, f"~{verb}.match", "-c", "wide", "--out", "plain")
    assert outcome.status == 0, outcome.err
    assert asked[1:] == [6 * weights]


def test_a_state_of_something_else_is_said(call, recipe, trained):
    source = ("-c", trained / "runs/net-train")
    assert call("prune", recipe, *source, "--out", "whole").status == 0
    assert call("prune", recipe, *source, "--out", "out").status == 0
    for name in ("pruned.json", "model.pt", "report.json"):
        Path("out", name).unlink()
    write_tensors(Path("out/match.pt"), {"made_for": {}, "work": {}})
    outcome = call("prune", recipe, *source, "--out", "out", "--resume")
    assert outcome.status == 0, outcome.err
    assert "match.pt is of other weights, data or options; match starts anew" in outcome.err
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
        call("prune", recipe, "-c", trained / "runs/net-train", "prune.steps=2", "~prune.match"),
        2,
        "add `match`, `blocks` or",
    )
    several = ("prune", recipe, "-c", trained / "runs/net-train", "prune.steps=2", "--dry-run")
    neither = "compare: a setting has neither `blocks` nor `match`"
    refused(call(*several, "prune.compare={match: [null, {}]}"), 2, neither)
    refused(call(*several, "prune.compare={match: [null, {}], blocks: [null, {}]}"), 2, neither)
    refused(call(*several, "~prune.match", "prune.blocks={}", "prune.compare={blocks: [null, {}]}"), 2, neither)
    between = call(*several, "prune.blocks={}", "prune.compare={match: [null, {}]}")
    assert between.status == 0, between.err  # blocks stand between the steps


def test_every_step_matches_the_outputs_of_layers_at_the_original_s_channels(call, recipe, trained, monkeypatch):
    """Rates next to 0 and no repair: the filters of each step are the original's, at the places that are told."""
    told = []

    class Told(fitting.Matching):
        def __init__(self, student, teacher, judge, options, places, masks, group):
            super().__init__(student, teacher, judge, options, places, masks, group)
            told.append({layer: kept.tolist() for layer, kept in places.items()})

    monkeypatch.setattr(fitting, "Matching", Told)
    options = ("prune.steps=3", "prune.repair=none", "prune.match={steps: 1, rate: 1e-12}", "prune.criterion=magnitude")
    options = (*options, "prune.budget=uniform", "-c", trained / "runs/net-train", "--out", "out")
    outcome = call("prune", recipe, *options)
    assert outcome.status == 0, outcome.err
    original = load(trained / "runs/net-train/model.pt").network
    for step, places in enumerate(told, 1):
        assert list(places) == ["conv1", "conv2", "head"]
        left = load(Path(f"out/step-{step}/pruned.pt")).network
        first, second = original.conv1.weight[places["conv1"]], original.conv2.weight[places["conv2"]]
        torch.testing.assert_close(left.conv1.weight, first, rtol=0, atol=1e-6)
        torch.testing.assert_close(left.conv2.weight, second[:, places["conv1"]], rtol=0, atol=1e-6)
    assert len({len(places["conv2"]) for places in told}) == 3
    for name in ("step-2/pruned.json", "step-3/pruned.json", "model.pt", "report.json"):
        Path("out", name).unlink()
    outcome = call("prune", recipe, *options, "--resume")
    assert outcome.status == 0, outcome.err
    assert told[3:] == told[1:3]
    assert "places" not in report("out")["details"]["trials"][0]["steps"][0]


def test_masked_weights_stay_zero_and_can_be_compared(call, recipe, trained):
    outcome = call(
        "prune", recipe, *MASKS, "-c", trained / "runs/net-train", "--out", "out", "prune.compare={match: [null, {}]}"
    )
    assert outcome.status == 0, outcome.err
    checkpoint = load(Path("out/model.pt"))
    for name, mask in checkpoint.masks.items():
        assert not checkpoint.network.state_dict()[name][~mask].any()
    assert [row[0] for row in rows("out", "comparison")] == ["no match", "match"]
    refused(
        call("prune", recipe, *MASKS, "prune.budget=divergence", "-c", trained / "runs/net-train"), 2,
        "unknown kind 'divergence'",
    )  # fmt: skip


def test_rungs_of_several_trials_share_a_table():
    one = [Rung("cut", 2.0, {"accuracy": 0.1}, 0.0, True), Rung("norms", 1.0, {"accuracy": 0.4}, 1.26, True)]
    one.append(Rung("norms behind norms", 1.0, {"accuracy": 0.3}, 1.0, False))
    other = [Rung("cut", 3.0, {"accuracy": 0.2}, 0.0, True), Rung("norms", 4.0, {"accuracy": 0.1}, 2.0, False)]
    assert metrics_of(one) == {"accuracy": 0.4}
    assert metrics_of(other) == {"accuracy": 0.2}
    for ladders in ([one, other], [other, one]):  # the last rung of one is not there in the other
        found = ladder_table("repairs", ladders)
        assert [row[0] for row in found.rows] == ["cut", "norms", "norms behind norms"]
        assert found.rows[0][-1] == ""
        assert found.rows[2] == ("norms behind norms", (1.0,), (0.3,), (1.0,), "not taken")
    assert ladder_table("repairs", [one, other]).rows[1] == (
        "norms",
        (1, 4),
        (0.4, 0.1),
        (1.3, 2.0),
        "not taken in 1 of 2",
    )


def test_what_is_not_finite_is_null_in_files_and_comes_back(tmp_path):
    def strict(text):
        def refused(constant):
            raise AssertionError(constant)

        return json.loads(text, parse_constant=refused)

    rungs = [Rung("cut", math.inf, {"loss": math.nan, "accuracy": 0.5}, 0.0, True), Rung("norms", 1.0, {}, 2.0, True)]
    step = PruneStep("macs", 1.0, 1.0, 2.0, rungs, [], {})
    step.write(SimpleNamespace(group=Group()), tmp_path)
    outcome = Outcome(rungs, [], {}, [], {}, 0.0)
    write_json(tmp_path / "outcome.json", outcome.plain)
    for read, name in ((PruneStep.read(tmp_path), STEP), (Outcome.read(tmp_path / "outcome.json"), "outcome.json")):
        (first, second), plain = read.rungs, strict((tmp_path / name).read_text())["rungs"]
        assert plain[0]["divergence"] is plain[0]["metrics"]["loss"] is None
        assert first.divergence == math.inf
        assert math.isnan(first.metrics["loss"])
        assert first.metrics["accuracy"] == 0.5
        assert second == rungs[1]


@pytest.mark.parametrize("validation", [None, "some"])
def test_notes_say_what_was_not_taken_and_what_judged(validation):
    current = SimpleNamespace(data=SimpleNamespace(validation=validation))
    cut, norms = Rung("cut", 0.3, {}, 0.0, True), Rung("norms", 0.2, {}, 1.0, True)
    assert ladder_notes(current, [[cut]]) == []
    judged = (
        [] if validation else ["repairs were judged on training images; set `data.validation` for images of their own"]
    )
    assert ladder_notes(current, [[cut, norms]]) == judged
    lost, *rest = ladder_notes(current, [[cut, norms, Rung("match", 0.4, {}, 1.0, False)], [cut, norms]])
    assert lost.startswith("match: not taken in 1 of 1 cases")
    assert "(divergence 0.4 after 0.2)" in lost
    assert rest == judged


def test_norms_are_tried_behind_a_repair_that_was_not_taken(call, recipe, monkeypatch):
    """In the second trial it counts as worse than the cut; norms behind it are of its network all the same."""
    assert call("train", recipe, "train.epochs=1", "model.batch_norm=true", "--out", "normed").status == 0
    climb, behind = ladder.Ladder.climb, {}

    def climbed(self, name, work, *told, **named):
        best = self.network
        found = climb(self, name, work, *told, **named)
        if name == "norms behind parallel":
            behind[self._label] = found.state_dict()
        if name == "parallel" and self._label == "seed 1":
            self.rungs[-1] = replace(self.rungs[-1], divergence=torch.inf, taken=False)
            self.network = best
        return found

    monkeypatch.setattr(ladder.Ladder, "climb", climbed)
    outcome = call("prune", recipe, "~prune.match", "trials=2", "-c", "normed", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert [row[0] for row in rows("out", "repairs")] == ["cut", "norms", "parallel", "norms behind parallel"]
    assert all(torch.equal(tensor, behind["seed 1"][name]) for name, tensor in behind["seed 0"].items())
    first, second = (trial["steps"][0]["rungs"] for trial in report("out")["details"]["trials"])
    assert second[3]["divergence"] == first[3]["divergence"]
    assert second[3]["taken"] == (first[3]["divergence"] < min(rung["divergence"] for rung in first[:2]))


def test_what_each_group_alone_costs_is_told(call, recipe, trained):
    source = ("-c", trained / "runs/net-train")
    for out, options in (("out", ()), ("other", ("prune.budget=uniform", "prune.sensitivity=true"))):
        outcome = call("prune", recipe, *source, "~prune.match", "--out", out, *options)
        assert outcome.status == 0, outcome.err
        found = rows(out, "divergence of the outputs when a share of one group alone goes")
        assert [row[0] for row in found] == ["conv1", "conv2"]
        for row in found:
            losses = [float(cell) for cell in row[1:]]
            assert len(losses) == 6
            assert 0 <= losses[0] < losses[-1]
        assert Path(out, "sensitivity.png").exists()
    outcome = call("prune", recipe, *source, "~prune.match", "--out", "plain", "prune.budget=uniform")
    assert outcome.status == 0, outcome.err
    assert not Path("plain/sensitivity.png").exists()


def test_outputs_that_overflow_before_and_after_every_repair_are_an_error(call, recipe, trained):
    checkpoint = load(trained / "runs/net-train/model.pt")
    with torch.no_grad():
        for parameter in checkpoint.network.parameters():
            parameter *= 1e25  # each is finite
    save(checkpoint, Path("huge.pt"))
    plain = "prune={target: {macs: 50%}, criterion: magnitude, repair: none, norms: false, held_out: 200}"
    outcome = call("prune", recipe, "-c", "huge.pt", "--out", "out", plain)
    assert outcome.status == 1
    assert "the outputs on held-out images are not finite, whatever was repaired" in outcome.err
    assert not Path("out/model.pt").exists()


def test_fits_of_fewer_samples_than_inputs_are_told(call, recipe, trained):
    for samples, told in ((20, True), (395, False)):
        options = (f"prune.samples={samples}", "prune.criterion=magnitude", "prune.budget=uniform", "~prune.match")
        outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--out", f"out{samples}", *options)
        assert outcome.status == 0, outcome.err
        notes = [note for note in report(f"out{samples}")["notes"] if "can follow these alone" in note]
        expected = ["head: least squares on 392 inputs of 20 samples can follow these alone; take more (`samples`)"]
        assert notes == (expected if told else [])
