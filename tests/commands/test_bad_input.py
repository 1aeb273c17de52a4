"""Nonsense gets one line that says where, what and what next, the right exit status, and leaves nothing behind."""

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from compresskit.storage.checkpoint import load, save
from compresskit.user_code import NO_CODE


def refused(outcome, status: int, *words: str) -> None:
    """One line of error with all the words, the status, and nothing on standard output."""
    assert outcome.status == status, outcome.err
    assert outcome.out == ""
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "runs/net-train/model.pt"


def nothing_written(folder: Path) -> bool:
    return not (folder / "runs").exists()


def test_a_wrong_key_names_its_line_and_the_near_key(call, recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("epochs: 2", "epoch: 2"))
    refused(call("train", recipe), 2, "net.yaml:3: train.epoch: unknown key; did you mean 'epochs'?")
    assert nothing_written(tmp_path)


def test_all_errors_come_at_once(call, recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("epochs: 2", "epoch: 2").replace("convnet", "convnt"))
    outcome = call("train", recipe)
    assert outcome.status == 2
    assert "net.yaml:1: model.kind" in outcome.err
    assert "net.yaml:3: train.epoch" in outcome.err


def test_a_missing_recipe(call, tmp_path):
    refused(call("train", "nowhere.yaml"), 2, "nowhere.yaml: no such file")


def test_a_missing_section(call, recipe):
    recipe.write_text(recipe.read_text().replace("train:", "finetune:", 1).replace("finetune:", "fuse:", 1))
    assert call("train", recipe).status == 2


def test_an_unknown_layer_lists_near_names(call, recipe, checkpoint, tmp_path):
    outcome = call("fuse", recipe, "fuse.layers=[[conv9, head]]", "-c", checkpoint)
    refused(outcome, 2, "no layer is named 'conv9'; did you mean 'conv2' or 'conv1'?")
    assert nothing_written(tmp_path)


def test_no_checkpoint(call, recipe, tmp_path):
    refused(call("fuse", recipe), 2, "--checkpoint: 'fuse' works on a trained net; name a model.pt")
    assert nothing_written(tmp_path)


def test_a_missing_checkpoint(call, recipe, tmp_path):
    refused(call("fuse", recipe, "-c", "nowhere.pt"), 1, "nowhere.pt", "no such file")
    assert nothing_written(tmp_path)


def test_a_folder_without_a_checkpoint(call, recipe, tmp_path):
    refused(call("fuse", recipe, "-c", tmp_path), 1, "no model.pt in this folder")


def test_a_truncated_checkpoint(call, recipe, checkpoint, tmp_path):
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes()[:2000])
    refused(call("finetune", recipe, "-c", "half.pt"), 1, "half.pt")
    assert nothing_written(tmp_path)


def test_a_checkpoint_that_asks_for_an_unlisted_callable(call, recipe, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)

    def poison(value):
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return "os.system" if value == "Flatten" else value

    torch.save(poison(content), tmp_path / "bad.pt")
    refused(call("evaluate", recipe, "-c", "bad.pt"), 1, "bad.pt", "os.system")


def test_a_checkpoint_of_other_data(call, recipe, checkpoint, tmp_path):
    np.savez(tmp_path / "other.npz", inputs=np.zeros((50, 3, 8, 8), np.float32), targets=np.arange(50) % 5)
    outcome = call("finetune", recipe, "data={kind: arrays, path: other.npz}", "-c", checkpoint)
    refused(outcome, 1, "made for classification of inputs (1, 28, 28)", "use the data that the net was trained on")
    assert nothing_written(tmp_path)


def test_a_cache_of_other_weights_is_refused_where_the_recipe_says_so(call, recipe, checkpoint, tmp_path):
    shared = ("moments.cache=shared", "moments.stale=fail")
    assert call("fuse", recipe, *shared, "-c", checkpoint, "--out", "first").status == 0
    other = load(checkpoint)
    with torch.no_grad():
        other.network.get_submodule("conv1").weight.mul_(2)
    save(other, tmp_path / "other.pt")
    outcome = call("fuse", recipe, *shared, "-c", "other.pt", "--out", "second")
    refused(outcome, 1, "it was made with other weights; remove it, name another `moments.cache`")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [(np.full((40, 1, 8, 8), np.nan, np.float32), "inputs"), (np.zeros((0, 1, 8, 8), np.float32), "")],
    ids=["NaN", "empty"],
)
def test_bad_data(call, recipe, tmp_path, inputs, words):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["inputs"], file["targets"] = inputs, np.zeros(len(inputs), np.int64)
    refused(call("train", recipe, "data={kind: arrays, path: bad.h5}"), 1, "bad.h5", words)
    assert nothing_written(tmp_path)


def test_missing_data(call, recipe, tmp_path):
    refused(call("train", recipe, "data={kind: mnist, root: nowhere}"), 1, "nowhere", "download: true")
    assert nothing_written(tmp_path)


def test_data_with_other_classes(call, recipe, checkpoint, tmp_path):
    np.savez(tmp_path / "more.npz", inputs=np.random.rand(50, 1, 28, 28).astype(np.float32), targets=np.arange(50) % 12)
    outcome = call("evaluate", recipe, "data={kind: arrays, path: more.npz}", "-c", checkpoint)
    refused(outcome, 1, "it has 10 outputs, the recipe's data 12; use its own data")


def test_another_normalisation_than_in_training(call, recipe, checkpoint):
    refused(
        call("evaluate", recipe, "data.normalize=none", "-c", checkpoint),
        1,
        "and `data.normalize` (auto or none) as in its training",
    )


@pytest.mark.parametrize(
    ("verb", "override", "words"),
    [
        ("train", "train.loss=mse", "loss: mse was given"),
        ("train", "train.monitor=mae", "monitor: mae was given"),
        ("fuse", "fuse.retrain={loss: mse}", "loss: mse was given"),
        ("fuse", "fuse.until={layers: 1}", "layers are named"),
        ("fuse", "fuse.baseline=random", "`retrain` does, which is missing"),
    ],
)
def test_wrong_options_are_refused_by_dry_runs_too_and_cost_no_earlier_run(
    call, recipe, trained, verb, override, words
):
    source = ["-c", trained / "runs/net-train"] if verb == "fuse" else []
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run/run.json").write_text('{"verb": "train", "made_of": {}}')
    (recipe.parent / "run/model.pt").write_text("a night of work")
    for options in (["--dry-run"], ["--force", "--out", "run"]):
        refused(call(verb, recipe, override, *source, *options), 2, words)
    assert (recipe.parent / "run/model.pt").read_text() == "a night of work"


def test_until_without_a_goal(call, recipe, checkpoint):
    outcome = call("fuse", recipe, "fuse.layers=auto", "fuse.until={}", "-c", checkpoint)
    refused(outcome, 2, "it states no goal; give layers, macs, params or error")


def test_resuming_with_another_checkpoint(call, recipe, checkpoint, tmp_path):
    assert call("fuse", recipe, "-c", checkpoint, "--out", "run").status == 0
    other = load(checkpoint)
    with torch.no_grad():
        other.network.get_submodule("conv1").weight.mul_(2)
    save(other, tmp_path / "other.pt")
    outcome = call("fuse", recipe, "-c", "other.pt", "--out", "run", "--resume")
    refused(outcome, 1, "made of something else (changed: --checkpoint)")


def test_a_folder_below_a_file(call, recipe):
    refused(call("train", recipe, "--out", "net.yaml/run"), 1, "it cannot be written (Not a directory)")


def test_output_equal_to_input(call, recipe, trained):
    folder = trained / "runs/net-train"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    outcome = call("finetune", recipe, "-c", folder, "--out", folder, "--force")
    refused(outcome, 1, "it holds the input", "write elsewhere with --out")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_occupied_folder(call, recipe, trained, tmp_path):
    outcome = call("train", recipe, "--out", trained / "runs/net-train")
    refused(outcome, 1, "it is not empty; use --force to start over, --resume to go on, or another --out")


def test_resuming_another_recipe(call, recipe, trained):
    outcome = call("train", recipe, "train.epochs=3", "--out", trained / "runs/net-train", "--resume")
    refused(outcome, 1, "made of something else (changed: train.epochs)")


def test_a_loss_that_is_not_finite(call, recipe):
    outcome = call("train", recipe, "train.optimizer={kind: sgd, lr: 1e20}")
    refused(outcome, 1, "lr")


def test_a_full_disk(call, recipe, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        outcome = call("train", recipe, "model={kind: mlp, widths: [64]}", "--out", disk / "run")
        refused(outcome, 1, "free", "--out")
        assert not list(disk.rglob("*.pt"))
        assert not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_until_is_asked_for(call, recipe, checkpoint, tmp_path):
    refused(call("fuse", recipe, "fuse.layers=auto", "-c", checkpoint), 2, "fuse.until", "--dry-run")
    assert nothing_written(tmp_path)


def test_a_device_that_is_not_there(call, recipe, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused(call("train", recipe, "--device", "cuda"), 1, "--device cuda: torch finds no GPU here")
    refused(call("train", recipe, "--device", "gpu"), 2, "allowed: auto, cpu, cuda")
    assert nothing_written(tmp_path)


@pytest.fixture
def ruined(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with two numbers that are none."""
    found = load(checkpoint)
    with torch.no_grad():
        found.network.conv2.weight[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    path = tmp_path / "ruined.pt"
    save(found, path)
    return path


SECTIONS = "prune: {target: {macs: 60%}}\nreconstruct: {keep: 60%}\nexpand: {init: from_checkpoint}\n"


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("finetune", ()),
        ("fuse", ()),
        ("prune", ()),
        ("prune", ("prune={kind: weights, target: {sparsity: 50%}}",)),
        ("reconstruct", ()),
        ("expand", ()),
        ("evaluate", ()),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(call, recipe, ruined, tmp_path, verb, options):
    recipe.write_text(recipe.read_text() + SECTIONS)
    words = ("ruined.pt: conv2.weight holds NaN or infinity (2 of 288 numbers); take a checkpoint from before",)
    refused(call(verb, recipe, *options, "-c", ruined), 1, *words)
    assert nothing_written(tmp_path)


def test_export_and_teachers_refuse_weights_that_are_not_finite(call, recipe, ruined, tmp_path):
    refused(call("export", ruined, "--out", tmp_path / "net.pt2"), 1, "ruined.pt: conv2.weight holds NaN")
    taught = f"train.distill={{kind: kd, teacher: {ruined}}}"
    refused(call("train", recipe, taught), 2, "distill.teacher: ", "conv2.weight holds NaN")


def test_inspect_and_spectra_report_weights_that_are_not_finite(call, recipe, ruined):
    recipe.write_text(recipe.read_text() + "spectra: {min_eigenvalues: 2}\n")
    assert "conv2.weight holds NaN or infinity: 2 of 288 numbers" in call("inspect", ruined).out
    outcome = call("spectra", recipe, "-c", ruined, "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["skipped"]["conv2"] == "weights are not finite"


def test_inspect_takes_the_folder_of_a_run(call, trained):
    folder, file = (call("inspect", trained / "runs/net-train" / name).out for name in ("", "model.pt"))
    assert folder == file


def test_no_code_is_an_option_of_every_verb_that_takes_a_recipe(call, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv(NO_CODE, "")  # and put back afterwards
    (tmp_path / "user_net.py").write_text("open('pwned', 'w')\n")
    for verb in ("train", "validate"):
        outcome = call(verb, recipe, "model={kind: 'user_net:make'}", "--no-code")
        refused(outcome, 2, "user_net:make would be imported and run, which --no-code")
    assert not (tmp_path / "pwned").exists()


def test_a_net_that_comes_out_without_numbers_is_not_written(call, recipe, checkpoint, tmp_path):
    """Weights of 1e30 have outputs whose variance is infinite, which a batch norm hides from every metric."""
    recipe.write_text(recipe.read_text().replace("channels: [4, 8]", "channels: [4, 8], batch_norm: true"))
    assert call("train", recipe, "train.epochs=1", "--out", "normed", "--quiet").status == 0
    found = load(tmp_path / "normed/model.pt")
    with torch.no_grad():
        found.network.conv1.weight.mul_(1e30)
    save(found, tmp_path / "huge.pt")
    outcome = call("finetune", recipe, "-c", "huge.pt", "--out", "out")
    assert outcome.status == 1
    assert "holds NaN" in outcome.err or "came out with NaN or infinity" in outcome.err or "training" in outcome.err
    assert not (tmp_path / "out/model.pt").exists()
