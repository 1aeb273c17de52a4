"""`compresskit fuse`: what it reports of layers that least squares does not find well, and its random baseline."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compresskit.commands import cached_moments
from compresskit.commands.fuse import steps
from compresskit.graph.edit import reset_parameters
from compresskit.models.parts.initialisation import VARIANCE
from compresskit.storage.checkpoint import load
from tests.commands.conftest import program, report

TRAINING = "{epochs: 1, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}}"


def test_few_images_get_a_ridge_and_are_told_what_to_expect(call, recipe, trained):
    found = {}
    for ridge in ("0.0", "auto"):
        solver = f"fuse.solver={{kind: cholesky, ridge: {ridge}}}"
        outcome = call("fuse", recipe, solver, "fuse.samples=300", "-c", trained / "runs/net-train", "--out", ridge)
        assert outcome.status == 0, outcome.err
        found[ridge] = report(ridge)["details"]["trials"][0]["steps"][0]["row"]
    assert found["auto"]["ridge"] > 0
    assert found["auto"]["measured_unexplained"] < 0.7 * found["0.0"]["measured_unexplained"]
    expected, measured = found["auto"]["unexplained"], found["auto"]["measured_unexplained"]
    assert 0.7 * measured < expected < 1.4 * measured  # of 200 held-out images
    (note,) = [note for note in report("0.0")["notes"] if "no better than a constant" in note]
    assert "conv2 + head" in note
    assert "unknown expected" in note  # fewer images than inputs, all of whose noise is fitted
    assert not any("no better than a constant" in note for note in report("auto")["notes"])


def test_channels_apart_that_do_badly_are_told_of_joint_ones(call, recipe):
    deep = ("model={kind: convnet, channels: [4, 8, 8]}", "train.epochs=1")
    assert call("train", recipe, *deep).status == 0
    apart = ("fuse.channels=independent", "fuse.solver={kind: cholesky, ridge: 0.0}", "fuse.samples=60")
    for layers, said in ("[conv2, conv3]", True), ("[conv3, head]", False):
        asked = (f"fuse.layers=[{layers}]", *apart, "-c", "runs/net-train", "--out", "fused", "--force")
        assert call("fuse", recipe, *asked).status == 0
        (note,) = [note for note in report("fused")["notes"] if "no better than a constant" in note]
        assert ("take `channels: joint`, more" in note) == said


def asked_of(monkeypatch) -> list[list[str]]:
    """What is asked for in each pass over the data, while the test runs."""
    found, original = [], cached_moments.collect
    monkeypatch.setattr(
        cached_moments, "collect", lambda n, r, *a, **k: (found.append([q.name for q in r]), original(n, r, *a, **k))
    )
    return found


def test_chains_that_leave_each_other_alone_share_a_pass(call, recipe, tmp_path, monkeypatch):
    deeper = ("model.channels=[4, 4, 8]", "train.epochs=1", "--quiet")
    assert call("train", recipe, *deeper).status == 0
    both = ("fuse.layers=[[conv3, head], [conv1, conv2]]", "-c", "runs/net-train")
    plan = "moments of 2 chains: 1 pass over 600 images"
    assert plan in call("fuse", recipe, *both, "--dry-run").out
    passes = asked_of(monkeypatch)
    outcome = call("fuse", recipe, *both, "--out", "together")
    assert len(passes) == 1
    assert plan in outcome.err
    assert call("fuse", recipe, "fuse.layers=[[conv3, head]]", "-c", "runs/net-train", "--out", "first").status == 0
    assert call("fuse", recipe, "fuse.layers=[[conv1, conv2]]", "-c", "first", "--out", "second").status == 0
    one, other = (load(Path(folder) / "model.pt").network.state_dict() for folder in ("together", "second"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name])
    passes.clear()
    assert call("fuse", recipe, *both, f"fuse.retrain={TRAINING}", "--out", "retrained").status == 0
    assert len(passes) == 2  # retraining changes all of them


def test_auto_keeps_the_moments_that_a_fused_layer_leaves_alone(call, recipe, tmp_path, monkeypatch):
    assert call("train", recipe, "model.channels=[4, 4, 8]", "train.epochs=1", "--quiet").status == 0
    passes = asked_of(monkeypatch)
    last_first = "conv3+head conv1+conv2"
    monkeypatch.setattr(
        steps, "choose", lambda ranked, *a: min(ranked, key=lambda c: last_first.find(str(c.fusible.chain)) % 99)
    )
    auto = ("fuse.layers=auto", "fuse.until={layers: 3}", "-c", "runs/net-train", "--out", "auto")
    outcome = call("fuse", recipe, *auto)
    assert outcome.status == 0
    assert "moments of 3 layers: 1 pass over 600 images" in outcome.err
    assert [len(names) for names in passes] == [3]
    assert call("fuse", recipe, *auto, "fuse.until={layers: 2}", "--force").status == 0
    fused = [step["row"]["layers"] for step in report("auto")["details"]["trials"][0]["steps"]]
    assert fused == [["conv3", "head"], ["conv1", "conv2"]]
    assert [len(names) for names in passes] == [3, 3, 1]  # conv1 + conv2 stays what it was; conv2 + head is new


def test_the_random_baseline_is_drawn_as_the_model_was(call, recipe, tmp_path, monkeypatch):
    gaussian = "model.initialisation=gaussian"
    assert program("train", recipe, gaussian, "train.epochs=1", "--quiet", cwd=tmp_path).status == 0
    drawn = []

    def watched(network, seed, how="torch"):
        left = reset_parameters(network, seed, how)
        drawn.append(torch.cat([layer.weight.flatten() for layer in network.children() if hasattr(layer, "weight")]))
        return left

    monkeypatch.setattr(steps, "reset_parameters", watched)
    options = (f"fuse.retrain={TRAINING}", "fuse.baseline=random", "-c", "runs/net-train", "--quiet")
    assert call("fuse", recipe, *options).status == 0
    (weights,) = drawn
    assert float(weights.detach().square().mean()) == pytest.approx(VARIANCE, rel=0.1)


def test_a_checkpoint_that_reads_back_otherwise_is_seen(call, recipe, trained, monkeypatch):
    from compresskit.commands import session

    def off(path, device="cpu"):
        found = load(path, device)
        with torch.no_grad():
            next(found.network.parameters()).mul_(1.5)
        return replace(found)

    monkeypatch.setattr(session, "load", off)
    assert call("fuse", recipe, "-c", trained / "runs/net-train", "--out", "out", "--quiet").status == 0
    assert report("out")["checks"]["model.pt read back"] > 0.01
