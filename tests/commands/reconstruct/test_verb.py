"""`reconstruct` through the program, on real images: files, table, resuming, refusals."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import compresskit
from compresskit.graph.channels.cut import cut
from compresskit.passes.reconstruct import network as reconstruct_network
from compresskit.storage.checkpoint import load, save
from compresskit.storage.lock import is_lock
from tests.commands.conftest import environment, program, report, two_processes_do_as_one

RECIPE = """\
model: {kind: convnet, channels: [8, 16]}
data: {kind: mnist-mini, limit: 1500, validation: 300}
train: {epochs: 3, batch_size: 64, optimizer: {kind: adam, lr: 5e-3}}
reconstruct:
  target: {size: 50%}
  retrain: {epochs: 1, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}}
report: {latency_repeats: 2}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.yaml, a trained net, and what `reconstruct` made of it."""
    folder = tmp_path_factory.mktemp("reconstruct")
    (folder / "net.yaml").write_text(RECIPE)
    for arguments in (("train", "net.yaml"), ("reconstruct", "net.yaml", "-c", "runs/net-train")):
        done = program(*arguments, cwd=folder)
        assert done.status == 0, done.err
    (folder / "table.txt").write_text(done.out)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE)
    return path


def accuracies(folder: Path) -> dict[str, float]:
    (trial,) = report(folder)["details"]["trials"]
    return {stage: trial[stage] and trial[stage]["accuracy"] for stage in ("reconstructed", "retrained")}


def test_files_at_fixed_names(trained):
    names = {path.name for path in (trained / "runs/net-reconstruct").iterdir()}
    assert names >= {"model.pt", "report.json", "report.md", "reconstructed.pt", "moments", "retrain", "trade-off.png"}
    assert not [name for name in names if name.startswith(".") and not is_lock(Path(name))]


def test_workers_read_the_moments_from_disk_and_choose_the_same(trained):
    """Whose matrices lie in files that stay open, and open files cannot be sent to another process."""
    options = ("reconstruct.workers=2", "reconstruct.retrain=null", "--out", "runs/workers")
    done = program("reconstruct", "net.yaml", "-c", "runs/net-train", *options, cwd=trained)
    assert done.status == 0, done.err
    found = [load(trained / "runs" / name).network.state_dict() for name in
             ("workers/model.pt", "net-reconstruct/reconstructed.pt")]  # fmt: skip
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_net_is_half_as_large_and_nearly_as_good(trained):
    found = report(trained / "runs/net-reconstruct")
    figures = {figure["name"]: (figure["before"][0], figure["after"][0]) for figure in found["figures"]}
    before, after = figures["size, 32 bits a number"]
    assert 0.4 < after / before <= 0.5
    network = compresskit.load(trained / "runs/net-reconstruct/model.pt")
    assert figures["parameters"][1] == sum(p.numel() for p in network.parameters())
    assert figures["file"][1] < 0.7 * figures["file"][0]
    assert figures["test accuracy"][1] > figures["test accuracy"][0] - 0.03
    assert found["targets"] == [{"name": "size", "asked": "50%", "got": found["targets"][0]["got"], "met": True}]
    assert found["checks"]["cut net against the one with zeros"] < 1e-4  # float32
    assert found["checks"]["model.pt read back"] == 0


def test_the_table_says_what_the_user_would_ask(trained):
    table = (trained / "table.txt").read_text()
    for words in ("test accuracy", "MACs", "size, sparse rows", "retrained", "unexplained", "backward", "left alone"):
        assert words in table
    assert "it reads a single channel" in table


def test_the_report_holds_every_trade_off(trained):
    (trial,) = report(trained / "runs/net-reconstruct")["details"]["trials"]
    for layer in trial["layers"]:
        curve = trial["curves"][layer["site"]]
        place = curve["kept"].index(layer["kept"])
        ridged = layer["unexplained"] / curve["errors"][place]  # few images: a ridge is chosen for the weights
        assert 0.99 < ridged < 1.2 or layer["unexplained"] < 1e-6


def test_the_checkpoint_loads_in_a_bare_python(trained):
    path = trained / "runs/net-reconstruct/model.pt"
    code = (
        f"import sys, torch, compresskit; net = compresskit.load({str(path)!r}); "
        "print(net(torch.zeros(2, 1, 28, 28)).shape); assert 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "[2, 10]" in done.stdout, done.stderr
    assert [entry["verb"] for entry in load(path).history] == ["train", "reconstruct"]


def test_a_comparison_has_a_row_for_each_combination(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    compare = (
        "reconstruct.compare={at: [40%], chaining: [parallel, top-down, bottom-up], selection: [backward, "
        "group-lasso], debias: [true, false], sparse_rows: true}"
    )
    arguments = (
        "reconstruct",
        "net.yaml",
        "~reconstruct.retrain",
        compare,
        "-c",
        "runs/net-train",
        "--out",
        "compared",
    )
    done = program(*arguments, cwd=tmp_path)
    assert done.status == 0, done.err
    (trial,) = report(tmp_path / "compared")["details"]["trials"]
    assert len(trial["comparison"]) == 3 * 3 + 1
    sparse = trial["comparison"][-1]
    assert (sparse["selection"], sparse["asked"]) == ("largest weights, sparse rows", "size 40%")
    assert 0.399 < sparse["size"] <= 0.4
    assert all(0 < point["training"]["accuracy"] <= 1 for point in trial["comparison"])
    assert "left out of the comparison: backward, debias false" in done.out
    assert (tmp_path / "compared/comparison.png").exists()
    for point in trial["comparison"]:
        asked = float(point["asked"].removeprefix("size ").removesuffix("%")) / 100
        assert asked - 0.15 < point["size"] <= asked
    by_line = {
        (p["selection"], p["chaining"], p["debias"], p["asked"]): p["metrics"]["accuracy"] for p in trial["comparison"]
    }
    shrunken = by_line["group-lasso", "parallel", False, "size 40%"]
    assert by_line["group-lasso", "parallel", True, "size 40%"] > shrunken  # debiasing matters


def test_a_killed_run_goes_on_and_ends_with_the_same_net(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs/net-reconstruct")
    program_path = str(Path(sys.executable).with_name("compresskit"))
    command = [program_path, "reconstruct", "net.yaml", "-c", "runs/net-train"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment())
    outcome = tmp_path / "runs/net-reconstruct/reconstructed.json"
    while not outcome.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    written = outcome.stat().st_mtime_ns
    done = program(*command[1:], "--resume", cwd=tmp_path)
    assert done.status == 0, done.err
    assert outcome.stat().st_mtime_ns == written  # not solved again
    first, second = (load(f / "runs/net-reconstruct/model.pt").network.state_dict() for f in (trained, tmp_path))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor)


def test_a_dry_run_lists_the_layers_and_writes_nothing(call, trained, tmp_path):
    outcome = call("reconstruct", trained / "net.yaml", "-c", trained / "runs/net-train", "--dry-run")
    assert outcome.status == 0, outcome.err
    for words in ("conv2", "head", "moments", "with min_channels left everywhere"):
        assert words in outcome.out
    assert list(tmp_path.iterdir()) == []
    checked = call("validate", trained / "net.yaml", "-c", trained / "runs/net-train")
    assert "reconstruct" in checked.out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reconstruct.layers=[conv9]"], "no convolution or linear layer is named so; did you mean 'conv2'"),
        (["reconstruct.keep=50%"], "give one of lam, keep, error and target"),
        (["reconstruct.target.size=0.1%"], "0.1% cannot be reached: with min_channels (1) left"),
        (["reconstruct.target={size: 50%, macs: 50%}"], "give one of size, params, macs and accuracy_drop, not 2"),
        (["~reconstruct.target", "reconstruct.keep={conv7: 4}"], "layer selector 'conv7'"),
        (["reconstruct.selection=forward"], "allowed: backward, group-lasso"),
        (["reconstruct.compare={at: [50%, 0.01%]}"], "0.0% cannot be reached"),
        (["reconstruct.compare={at: [0.4]}"], "0.4 cannot stand for `size`; give a share such as 40%"),
        (["~reconstruct.target", "reconstruct.lam=1", "reconstruct.compare={at: [50%]}"], "`lam`; give a number"),
        (
            ["~reconstruct.target", "reconstruct.keep=4", "reconstruct.compare={at: [2.5]}"],
            "2.5 cannot stand for `keep`",
        ),
        (["reconstruct.retrain.schedule={kind: cosine, warmup: 3}"], "warm up for less"),
    ],
)
def test_bad_recipes_are_refused_before_any_work(call, trained, tmp_path, overrides, words):
    outcome = call("reconstruct", trained / "net.yaml", *overrides, "-c", trained / "runs/net-train")
    assert outcome.status == 2
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_penalty_beyond_the_largest_is_held_and_said(call, trained, tmp_path):
    changes = ("~reconstruct.target", "~reconstruct.retrain", "reconstruct.lam=1e6", "reconstruct.min_channels=3")
    outcome = call("reconstruct", trained / "net.yaml", *changes, "-c", trained / "runs/net-train", "--out", "held")
    assert outcome.status == 0, outcome.err
    assert "conv2: lambda 1e+06 would leave fewer than 3; held at min_channels" in outcome.out
    assert load(tmp_path / "held/model.pt").network.get_submodule("conv1").weight.shape[0] == 3


def test_a_run_that_changes_nothing_is_an_error(call, trained):
    changes = ("~reconstruct.target", "~reconstruct.retrain", "reconstruct.keep=100%")
    outcome = call("reconstruct", trained / "net.yaml", *changes, "-c", trained / "runs/net-train", "--out", "same")
    assert outcome.status == 2
    assert "every layer keeps all of its inputs; ask for less" in outcome.err


def test_a_stale_cache_is_refused_where_the_recipe_says_so(call, trained, tmp_path):
    shared = ("moments.cache=shared", "moments.stale=fail", "~reconstruct.retrain")
    first = call("reconstruct", trained / "net.yaml", *shared, "-c", trained / "runs/net-train", "--out", "first")
    assert first.status == 0, first.err
    other = load(trained / "runs/net-train/model.pt")
    with torch.no_grad():
        other.network.get_submodule("conv1").weight.mul_(2)
    save(other, tmp_path / "other.pt")
    second = call("reconstruct", trained / "net.yaml", *shared, "-c", "other.pt", "--out", "second")
    assert second.status == 1
    assert "it was made with other weights" in second.err


def test_numbers_have_no_accuracy_to_drop(call, tmp_path):
    import h5py
    import numpy as np

    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        inputs = random.normal(size=(300, 6)).astype(np.float32)
        file["inputs"], file["targets"] = inputs, inputs[:, :2] * 3
    (tmp_path / "net.yaml").write_text(
        "model: {kind: mlp, widths: [16, 8]}\ndata: {kind: arrays, path: data.h5}\n"
        "train: {epochs: 2}\nreconstruct: {target: {accuracy_drop: 1.0}}\n"
    )
    assert call("train", "net.yaml").status == 0
    refused = call("reconstruct", "net.yaml", "-c", "runs/net-train")
    assert refused.status == 2
    assert "accuracy_drop: the recipe's data are numbers, no classes; give a size" in refused.err
    sized = call(
        "reconstruct", "net.yaml", "~reconstruct.target", "reconstruct.target={size: 60%}", "-c", "runs/net-train"
    )
    assert sized.status == 0, sized.err
    assert "a target was judged on training images" in sized.out


def test_a_drop_of_accuracy_is_that_of_the_net_that_is_saved(call, trained, tmp_path):
    changes = ("~reconstruct.target", "~reconstruct.retrain", "reconstruct.target={accuracy_drop: 2.0}")
    arguments = ("reconstruct", trained / "net.yaml", *changes, "-c", trained / "runs/net-train")
    assert call(*arguments, "--out", "within").status == 0
    (target,) = report(tmp_path / "within")["targets"]
    assert target["met"]
    assert 0 <= float(target["got"].split()[0]) <= 2.0
    beyond = call(*arguments, "reconstruct.low_rank={error: 0.9}", "--out", "beyond")  # factors lose more than allowed
    assert beyond.status == 3
    assert "accuracy_drop: 2 points was asked for" in beyond.err


def test_trials_are_put_together(call, trained, tmp_path):
    recipe = trained / "net.yaml"
    two = ("trials=2", "train.epochs=1")
    assert call("train", recipe, *two, "--out", "t").status == 0
    outcome = call("reconstruct", recipe, *two, "~reconstruct.retrain", "-c", "t", "--out", "r")
    assert outcome.status == 0, outcome.err
    assert "±" in outcome.out
    assert "model.pt is that of seed" in outcome.out
    assert (tmp_path / "r/trial-2/model.pt").exists()


def test_two_processes_reconstruct_as_one_does(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    arguments = ["reconstruct", "net.yaml", "~reconstruct.retrain", "-c", "runs/net-train", "--device", "cpu"]
    two_processes_do_as_one(tmp_path, *arguments)


def test_a_wrong_cut_is_seen_in_the_report(trained, recipe, call, monkeypatch):
    check = "cut net against the one with zeros"

    def wrong(network, channels, alive):
        found = cut(network, channels, alive)
        with torch.no_grad():
            found.conv2.weight.copy_(found.conv2.weight.flip(1))
        return found

    options = ("reconstruct={keep: 50%, samples: 200}", "-c", trained / "runs/net-train", "-q")
    for name, broken in (("whole", False), ("broken", True)):
        if broken:
            monkeypatch.setattr(reconstruct_network, "cut", wrong)
        assert call("reconstruct", recipe, *options, "--out", name).status == 0
    reports = (json.loads(Path(f"{name}/report.json").read_text()) for name in ("whole", "broken"))
    whole, broken = (report["checks"][check] for report in reports)
    assert whole < 1e-4
    assert broken > 1e-2
