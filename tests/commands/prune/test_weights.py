"""`compresskit prune` of weights and kernels: masks from the first step to the verbs behind it."""

import json
from pathlib import Path

import pytest
import torch

from compresskit.commands.prune import weights
from compresskit.passes.repair.masked import repair_masked
from compresskit.storage.checkpoint import load
from tests.commands.conftest import RECIPE, rows
from tests.commands.prune.test_verb import RETRAIN, report, table, whole_and_resumed
from tests.commands.test_bad_input import refused

PRUNE = """\
prune:
  kind: weights
  target: {sparsity: 90%}
  samples: 300
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE + PRUNE)
    return path


def figures(folder: str) -> dict[str, tuple[list, list]]:
    return {figure["name"]: (figure["before"], figure["after"]) for figure in report(folder)["figures"]}


@pytest.mark.parametrize("kind", ["weights", "kernels"])
def test_masks_are_found_kept_in_training_and_reported(call, recipe, kind):
    norms = "model={kind: convnet, channels: [4, 8], batch_norm: true}"
    assert call("train", recipe, norms, "train.epochs=1", "--out", "normed").status == 0
    outcome = call("prune", recipe, f"prune.kind={kind}", RETRAIN, "-c", "normed", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert list(table("out", "test metrics")) == ["original", "masked", "repaired", "fine-tuned"]
    assert list(table("out", "repairs")) == ["masked", "norms", "top-down", "norms behind top-down"]
    found = report("out")
    (target,) = found["targets"]
    assert target["met"]
    assert "90.00% zeros" in target["asked"]
    checkpoint = load(Path("out/model.pt"))
    rows = table("out", kind)
    for name, mask in checkpoint.masks.items():
        weight = checkpoint.network.get_parameter(name)
        assert not bool(weight[~mask].any())
        assert torch.equal(load(Path("out/pruned.pt")).masks[name], mask)
        units, left, gone = rows[name.removesuffix(".weight")]
        assert left == (mask.flatten(2).any(2) if mask.ndim == 4 and kind == "kernels" else mask).sum()
        assert gone == f"{1 - left / units:.1%}"
    zeros = sum(int((~mask).sum()) for mask in checkpoint.masks.values())
    before, after = figures("out")["parameters not masked"]
    assert before[0] - after[0] == zeros >= 0.9 * sum(mask.numel() for mask in checkpoint.masks.values())
    before, after = figures("out")["MACs by weights not masked"]
    assert after[0] < before[0]
    before, after = figures("out")["MACs"]
    assert after == before
    assert Path("out/pruning-ratios.png").exists()
    assert [entry["verb"] for entry in checkpoint.history] == ["train", "prune"]


def test_fine_tuning_keeps_the_masks_and_says_so(call, recipe, trained):
    assert call("prune", recipe, "-c", trained / "runs/net-train", "--out", "out", "-q").status == 0
    outcome = call("finetune", recipe, "-c", "out", "--out", "tuned")
    assert outcome.status == 0, outcome.err
    for name in ("model.pt", "best.pt"):
        tuned, pruned = load(Path("tuned") / name), load(Path("out/model.pt"))
        assert tuned.masks.keys() == pruned.masks.keys()
        for parameter, mask in tuned.masks.items():
            assert torch.equal(mask, pruned.masks[parameter])
            assert torch.equal(tuned.network.get_parameter(parameter) != 0, mask)
    assert figures("tuned")["parameters not masked"][0] == figures("tuned")["parameters not masked"][1]
    outcome = call("evaluate", recipe, "-c", "tuned", "--json")
    assert "parameters not masked" in outcome.out
    assert '"not masked"' in outcome.out
    outcome = call("inspect", "tuned/model.pt")
    assert "MACs by weights not masked" in outcome.out
    assert call("spectra", recipe, "spectra={}", "-c", "tuned", "--out", "spectra").status == 0


def test_steps_mask_and_retrain_in_turn(call, recipe, trained):
    outcome = call("prune", recipe, RETRAIN, "prune.steps=2", "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    steps = report("out")["details"]["trials"][0]["steps"]
    assert [step["got"] / step["whole"] for step in steps] == pytest.approx([0.1**0.5, 0.1], abs=1e-3)
    first, last = (load(Path(path)).masks for path in ("out/step-1/pruned.pt", "out/model.pt"))
    assert all(not bool((last[name] & ~first[name]).any()) for name in last)


def test_a_masked_net_is_masked_further(call, recipe, trained):
    assert (
        call("prune", recipe, "prune.target={sparsity: 50%}", "-c", trained / "runs/net-train", "--out", "a").status
        == 0
    )
    outcome = call("prune", recipe, "prune.kind=kernels", "-c", "a", "--out", "b")
    assert outcome.status == 0, outcome.err
    first, last = (load(Path(path) / "model.pt").masks for path in ("a", "b"))
    assert all(not bool((last[name] & ~first[name]).any()) for name in last)
    refused(
        call("prune", recipe, "prune.target={sparsity: 40%}", "-c", "b", "--out", "c"), 2, "would be left", "sparsity"
    )


def test_the_weights_that_are_left_are_solved_again(call, recipe, trained):
    source, compare = ("-c", trained / "runs/net-train"), "prune.compare.repair=[none, parallel, top-down]"
    outcome = call("prune", recipe, "prune.repair=parallel", compare, *source, "--out", "out")
    assert outcome.status == 0, outcome.err
    assert [path.name for path in Path("out/moments").iterdir()]
    first, second = report("out")["details"]["trials"][0]["steps"][0]["rungs"]
    assert (first["name"], second["name"]) == ("masked", "parallel")
    assert second["divergence"] < first["divergence"]
    (note,) = (note for note in report("out")["notes"] if note.startswith("repair: "))
    assert "3 layers solved again; most is lost of " in note
    compared = [row[0] for row in rows("out", "comparison")]
    assert compared == ["repair none", "repair parallel", "repair top-down"]
    folders = ("out/compare/sparsity-90-repair-none", "out", "out/compare/sparsity-90-repair-top-down")
    plain, solved, chained = (load(Path(folder, "pruned.pt")) for folder in folders)
    for name, mask in plain.masks.items():
        for other in (solved, chained):
            assert torch.equal(other.masks[name], mask)
            assert not bool(other.network.get_parameter(name)[~mask].any())
        assert not torch.equal(plain.network.get_parameter(name), solved.network.get_parameter(name))
    assert not torch.equal(solved.network.head.weight, chained.network.head.weight)


@pytest.mark.parametrize("repair", ["parallel", "top-down"])
def test_steps_solve_what_each_of_them_leaves(call, recipe, trained, repair):
    options = ("prune.steps=2", f"prune.repair={repair}", "prune.match={steps: 5}", "prune.held_out=200")
    outcome = call("prune", recipe, *options, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    for step in report("out")["details"]["trials"][0]["steps"]:
        assert [rung["name"] for rung in step["rungs"]] == ["masked", repair, "match"]
        assert step["rungs"][1]["taken"]
        assert list(step["unexplained"]) == ["conv1", "conv2", "head"]
    found = load(Path("out/model.pt"))
    assert all(not bool(found.network.get_parameter(name)[~mask].any()) for name, mask in found.masks.items())


def test_a_repair_that_makes_it_worse_is_not_taken(call, recipe, trained, monkeypatch):
    def spoiled(*args, **options):
        found = repair_masked(*args, **options)
        with torch.no_grad():
            found.network.head.weight.mul_(-1)
        return found

    monkeypatch.setattr(weights, "repair_masked", spoiled)
    outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    _, solved = report("out")["details"]["trials"][0]["steps"][0]["rungs"]
    assert not solved["taken"]
    assert any(note.startswith("top-down: not taken") for note in report("out")["notes"])
    source = load(trained / "runs/net-train/model.pt").network
    found = load(Path("out/model.pt"))
    for name, mask in found.masks.items():
        assert torch.equal(found.network.get_parameter(name), source.get_parameter(name) * mask)


def test_a_killed_run_goes_on(recipe, trained, tmp_path):
    one, other = whole_and_resumed(("-c", trained / "runs/net-train"), tmp_path)
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name])
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)


def test_a_dry_run_says_what_can_be_reached(call, recipe, trained, tmp_path):
    outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--dry-run", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["tables"][0]["title"] == "weights that may go"
    assert [figure["name"] for figure in found["figures"]][0] == "weights now"
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


def test_refusals(call, recipe, trained):
    source = ("-c", trained / "runs/net-train")
    refused(call("prune", recipe, "prune.target={sparsity: 100%}", *source), 2, "prune.target", "is no share")
    refused(
        call("prune", recipe, "prune.target={sparsity: 1.0}", *source),
        2,
        "prune.target.sparsity",
        "is no share below 1",
    )
    refused(
        call("prune", recipe, "prune.target={latency: 2}", *source),
        2,
        "latency",
        "allowed: sparsity, degree, params, macs",
    )
    refused(call("prune", recipe, "prune.min_channels=3", *source), 2, "prune.min_channels: unknown key")
    refused(
        call("prune", recipe, "prune.kind=filters", *source), 2, "unknown kind 'filters'", "channels, weights, kernels"
    )
    refused(call("prune", recipe, "prune.steps=2", *source), 2, "`match`, `blocks` or `retrain`")


def test_verbs_that_find_new_weights_refuse_masks(call, recipe, trained):
    assert call("prune", recipe, "-c", trained / "runs/net-train", "--out", "out", "-q").status == 0
    for verb, override in (
        ("fuse", "seed=0"),
        ("reconstruct", "reconstruct={keep: 50%}"),
        ("expand", "expand={strategy: ck, stages: [expand], init: from_checkpoint}"),
    ):
        refused(
            call(verb, recipe, override, "-c", "out"), 1, "out/model.pt", f"'{verb}' finds new weights", "conv1.weight"
        )
    refused(call("prune", recipe, "prune={target: {macs: 60%}}", "-c", "out"), 1, "pruning channels finds new weights")


def test_masks_are_compared(call, recipe, trained):
    compare = "prune.compare={at: [50%, 0.9], criterion: [magnitude, random], budget: [global, uniform]}"
    outcome = call("prune", recipe, compare, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    (found,) = [table for table in report("out")["tables"] if table["title"] == "comparison"]
    assert len(found["rows"]) == 8
    assert [float(row[3].removesuffix("%")) for row in found["rows"][:2]] == pytest.approx([50, 10], abs=0.02)
    assert found["columns"][-1] == "test accuracy, repaired"
    assert (
        load(Path("out/compare/sparsity-0.9-random-uniform/model.pt")).masks.keys()
        == load(Path("out/model.pt")).masks.keys()
    )
    refused(call("prune", recipe, "prune.compare={at: [1.5]}", "-c", trained / "runs/net-train"), 2, "no share below 1")


def test_a_degree_is_compared_with_others(call, recipe, trained):
    """4 x 1 and 8 x 4 kernels of 9 weights and a wide head of 10 outputs: so many for each node of the shorter side."""
    recipe.write_text(RECIPE + "prune: {kind: weights, target: {degree: 2}, compare: {at: [2, 3]}}\n")
    outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--out", "out", "--json")
    assert outcome.status == 0, outcome.err
    masks = load(Path("out/model.pt")).masks
    assert sum(int(mask.sum()) for mask in masks.values()) == (2 * 1 + 2 * 4) * 9 + 2 * 10
    (target,) = json.loads(outcome.out)["targets"]
    assert target["name"] == "degree"
    assert "110 weights left" in target["got"]
    compared = load(Path("out/compare/degree-3.0-as-the-section-says/model.pt")).masks
    assert sum(int(mask.sum()) for mask in compared.values()) == (3 * 1 + 3 * 4) * 9 + 3 * 10
    refused(
        call("prune", recipe, "prune.target.degree=1", "prune.compare.at=[50%]", "-c", trained / "runs/net-train"),
        *(2, "compare.at", "whole number"),
    )
