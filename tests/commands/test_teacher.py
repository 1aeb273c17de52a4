"""The network that a run starts from as the teacher of its training, against the same network named as a file."""

from pathlib import Path

import pytest
import torch

from compresskit.storage.checkpoint import load
from tests.commands.conftest import RECIPE, program, report, rows
from tests.commands.test_bad_input import refused

TRAINING = "epochs: 1, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}"
FILE = "{{kind: {kind}, teacher: {teacher}}}"
WAYS = {
    "finetune": ("finetune", "finetune={{{training}}}"),
    "channels": ("prune", "prune={{target: {{macs: 60%}}, steps: 2, samples: 200, retrain: {{{training}}}}}"),
    "weights": ("prune", "prune={{kind: weights, target: {{sparsity: 60%}}, steps: 2, retrain: {{{training}}}}}"),
    "reconstruct": ("reconstruct", "reconstruct={{keep: 60%, samples: 200, retrain: {{{training}}}}}"),
    "fuse": ("fuse", "fuse={{layers: [[conv2, head]], samples: 200, held_out: 100, retrain: {{{training}}}}}"),
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE)
    return path


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    return load(Path(folder) / "model.pt").network.state_dict()


def equal(one: str, other: str) -> bool:
    first, second = tensors(one), tensors(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["kd", "pkt"])
@pytest.mark.parametrize("way", WAYS)
def test_the_original_teaches_every_step(call, recipe, trained, way, kind):
    """One word in the recipe; in the last of several steps, too, the teacher is the network before the first."""
    verb, section = WAYS[way]
    parent = trained / "runs/net-train"
    taught = {"word": kind, "file": FILE.format(kind=kind, teacher=parent), "alone": "null"}
    for name, distill in taught.items():
        training = f"{TRAINING}, distill: {distill}"
        outcome = call(verb, recipe, section.format(training=training), "-c", parent, "--out", name)
        assert outcome.status == 0, outcome.err
    assert equal("word", "file")
    assert not equal("word", "alone")
    said = f"distill: training learnt from the network that the run started from, too ({kind})"
    assert said in report("word")["notes"]
    assert f"distill: training learnt from {parent}, too ({kind})" in report("file")["notes"]
    assert not any("distill" in note for note in report("alone")["notes"])
    entry = load(Path("word/model.pt")).history[-1]["recipe"][verb]
    assert (entry if verb == "finetune" else entry["retrain"])["distill"]["teacher"] == "original"


def test_a_killed_training_goes_on_under_the_same_teacher(recipe, trained, tmp_path):
    section = WAYS["channels"][1].format(training=f"{TRAINING}, distill: kd")
    source = ("-c", trained / "runs/net-train")
    for name in ("whole", "cut"):
        assert program("prune", "net.yaml", section, *source, "--out", name, cwd=tmp_path).status == 0
    for name in ("model.pt", "step-2/retrain/state.pt", "report.json"):
        (tmp_path / "cut" / name).unlink()
    again = program("prune", "net.yaml", section, *source, "--out", "cut", "--resume", cwd=tmp_path)
    assert again.status == 0, again.err
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("way", ["channels", "weights"])
def test_teachers_are_compared(call, recipe, trained, way):
    """Each row is what a run of its own gives."""
    section, source = WAYS[way][1], ("-c", trained / "runs/net-train")
    taught, alone = (section.format(training=f"{TRAINING}{more}") for more in (", distill: pkt", ""))
    compare = "prune.compare={distill: [null, pkt, {kind: kd, weight: 0.3}]}"
    assert call("prune", recipe, alone, compare, *source, "--out", "study").status == 0
    assert call("prune", recipe, taught, *source, "--out", "taught").status == 0
    found = rows("study", "comparison")
    assert [row[0] for row in found] == ["no teacher", "distill pkt", "distill kd weight 0.3"]
    last = rows("taught", "test metrics")[-1]
    assert last[0] == "step 2: fine-tuned"
    assert found[1][-1] == last[1]
    (folder,) = Path("study/compare").glob("*distill-pkt")
    assert equal(str(folder), "taught")


def test_refusals(call, recipe, trained, tmp_path):
    source = ("-c", trained / "runs/net-train")
    for verb in ("train", "expand"):
        refused(
            call(verb, recipe, "train.distill=kd", "expand={strategy: cl}"), 2,
            f"distill.teacher: original is the network that a run starts from, and this '{verb}' starts from none",
        )  # fmt: skip
    section = WAYS["channels"][1].format(training=TRAINING)
    lost = "prune.compare={distill: [{kind: kd, teacher: nowhere.pt}]}"
    refused(call("prune", recipe, section, lost, *source), 2, "distill.teacher: nowhere.pt: no such file")
    none = "prune={target: {macs: 60%}, compare: {distill: [kd]}}"
    refused(call("prune", recipe, none, *source), 2, "compare.distill: teachers are of retraining; add `retrain`")
    layers = "distill: {kind: hint, layers: [[conv9, conv1]]}"
    refused(call("finetune", recipe, f"finetune={{{TRAINING}, {layers}}}", *source), 2, "the student has no layer")
    assert not (tmp_path / "runs").exists()
