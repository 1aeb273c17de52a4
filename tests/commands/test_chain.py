"""The whole chain through the installed program, from a shell and from a Makefile, on real images."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compresskit
from compresskit.storage.checkpoint import load
from compresskit.storage.lock import is_lock
from tests.commands.conftest import environment, program, two_processes_do_as_one
from tests.forked.start import commands, torchrun


@pytest.fixture(scope="module")
def chain(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, then fuse with retraining and a random baseline, then finetune."""
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    retrain = "fuse.retrain={epochs: 1, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}}"
    fused = program("fuse", "net.yaml", retrain, "fuse.baseline=random", "-c", "runs/net-train", cwd=folder)
    assert fused.status == 0, fused.err
    (folder / "fuse.txt").write_text(fused.out)
    tuned = program("finetune", "net.yaml", "-c", "runs/net-fuse", "--json", cwd=folder)
    assert tuned.status == 0, tuned.err
    (folder / "finetune.json").write_text(tuned.out)
    return folder


def test_each_verb_leaves_its_files_at_fixed_names(chain):
    common = {"model.pt", "report.json", "report.md", "report.html", "recipe.yaml", "run.json"}
    for verb, more in {
        "train": {"best.pt", "metrics.csv", "state.pt"},
        "fuse": {"learning-curves.png", "learning-curves.svg", "layer-sizes.png", "moments", "step-1"},
        "finetune": {"best.pt", "metrics.csv", "state.pt"},
    }.items():
        names = {path.name for path in (chain / "runs" / f"net-{verb}").iterdir()}
        assert common | more <= names
        assert not [name for name in names if name.startswith(".") and not is_lock(Path(name))]


def test_the_nets_get_smaller_and_still_work(chain):
    report = json.loads((chain / "finetune.json").read_text())
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert figures["test accuracy"]["after"][0] > 0.6  # 400 images, three epochs; chance is 0.1
    fused = json.loads((chain / "runs/net-fuse/report.json").read_text())
    macs = next(figure for figure in fused["figures"] if figure["name"] == "MACs")
    assert macs["after"][0] < macs["before"][0]


def test_the_table_says_what_the_user_would_ask(chain):
    table = (chain / "fuse.txt").read_text()
    for words in (
        "test accuracy",
        "parameters",
        "MACs",
        "latency, batch 1, cpu",
        "from random",
        "unexplained",
        "measured",
    ):
        assert words in table
    assert "conv2 + head" in table
    assert "10×784" in table  # 4 maps of 14x14 into 10 classes


def test_the_report_in_markdown_has_the_same_tables(chain):
    text = (chain / "runs/net-fuse/report.md").read_text()
    assert text.startswith("# fuse net")
    assert "| conv2 + head |" in text


def test_a_fused_checkpoint_loads_in_a_bare_python_bit_for_bit(chain):
    path = chain / "runs/net-fuse/model.pt"
    x = torch.linspace(-1, 1, 3 * 28 * 28).reshape(3, 1, 28, 28)
    expected = load(path).network.eval()(x)
    torch.save((x, expected), chain / "expected.pt")
    code = (
        "import sys, torch, compresskit; x, expected = torch.load('expected.pt'); "
        f"net = compresskit.load({str(path)!r}); assert torch.equal(net(x), expected); "
        "assert 'torchvision' not in sys.modules; print(type(net).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=chain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(compresskit.load(path)(x), expected, rtol=0, atol=0)


def test_the_history_tells_the_whole_descent(chain):
    done = program("inspect", "runs/net-finetune/model.pt", "--json", cwd=chain)
    history = json.loads(done.out)["details"]["history"]
    assert [entry["verb"] for entry in history] == ["train", "fuse", "finetune"]
    assert history[1]["parent"] != history[2]["parent"]
    assert history[0]["parent"] is None
    assert {"recipe", "metrics", "seed", "versions", "git", "command"} <= history[1].keys()


def test_a_makefile_can_chain_the_verbs(trained, tmp_path):
    shutil.copy(trained / "net.yaml", tmp_path)
    (tmp_path / "Makefile").write_text(
        f"RUN := {commands()}/compresskit\n"
        "runs/net-fuse/model.pt: net.yaml runs/net-train/model.pt\n"
        "\t$(RUN) fuse $< --checkpoint runs/net-train --out $(@D) --resume --force\n"
        "runs/net-train/model.pt: net.yaml\n"
        "\t$(RUN) train $< train.epochs=1 --out $(@D) --resume --force\n"
    )
    for expected in ("fuse net.yaml", "is up to date"):
        done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_evaluate_agrees_with_the_run_and_writes_nothing(trained):
    before = sorted(trained.rglob("*"))
    done = program("evaluate", "net.yaml", "-c", "runs/net-train", "--json", cwd=trained)
    assert sorted(trained.rglob("*")) == before
    figures = {figure["name"]: figure["after"] for figure in json.loads(done.out)["figures"]}
    run = json.loads((trained / "runs/net-train/report.json").read_text())
    expected = {figure["name"]: figure["after"] for figure in run["figures"]}
    for name in ("test accuracy", "parameters", "MACs", "file"):
        assert figures[name] == expected[name]


def test_two_processes_fuse_as_one_does(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    arguments = ["fuse", "net.yaml", "-c", "runs/net-train", "--device", "cpu", "--out", "two"]
    done = torchrun("-m", "compresskit", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fused layers") == 1
    one = program("fuse", "net.yaml", "-c", "runs/net-train", "--out", "one", cwd=tmp_path)
    assert one.status == 0, one.err
    first, second = (load(tmp_path / name / "model.pt").network.state_dict() for name in ("one", "two"))
    for name, tensor in first.items():
        # sums of float64 in another order, behind a solve, rounded to float32
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)


def test_two_processes_prune_as_one_does(trained, tmp_path):
    """By curvatures, which each takes of all images, and under the original as a teacher."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    section = "prune={target: {params: 90%}, criterion: fisher, repair: none, images: 100, held_out: 100, "
    section += "retrain: {epochs: 1, batch_size: 50, distill: kd, optimizer: {kind: sgd, lr: 0.01}}}"
    arguments = ["prune", "net.yaml", section, "-c", "runs/net-train", "--device", "cpu"]
    two_processes_do_as_one(tmp_path, *arguments)
