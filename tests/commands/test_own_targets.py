"""A detector of the user's, with targets, outputs, loss and metric of its own, through the program."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from compresskit.storage.checkpoint import load
from tests.commands.conftest import program, report, rows
from tests.commands.test_bad_input import refused
from tests.forked.start import torchrun

CODE = """
import torch
from torch import nn
from torch.utils.data import Dataset

class Spots(Dataset):
    "One to three bright pixels on a noisy ground, and where they are."
    def __init__(self, count, seed):
        self.count, self.seed = count, seed
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(1000 * self.seed + index)
        image = 0.3 * torch.rand(1, 8, 8, generator=draws)
        places = torch.randint(8, (1 + index % 3, 2), generator=draws)
        image[0, places[:, 0], places[:, 1]] = 1.0
        return image, {"places": places, "name": f"image {index}"}

def spots():
    return {"train": Spots(96, 0), "validation": Spots(32, 1), "test": Spots(40, 2)}

def collate(samples):
    images, targets = zip(*samples)
    return torch.stack(images), {"places": [t["places"] for t in targets], "names": [t["name"] for t in targets]}

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.fine, self.coarse = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)
    def forward(self, x):
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        raw = {"fine": self.fine(x), "coarse": self.coarse(self.conv3(x).relu())}
        if self.training:
            return raw
        return raw["fine"].sigmoid().flatten(1), raw["coarse"].sigmoid().flatten(1)

def loss(outputs, targets):
    total = 0
    for raw, scale in ((outputs["fine"], 1), (outputs["coarse"], 2)):
        wanted = torch.zeros_like(raw)
        for image, places in enumerate(targets["places"]):
            wanted[image, 0, places[:, 0] // scale, places[:, 1] // scale] = 1
        total = total + nn.functional.binary_cross_entropy_with_logits(raw, wanted)
    return total

def found(outputs, targets):
    "The share of places that score above one half."
    right = count = 0
    for (fine, _), batch in zip(outputs, targets):
        for scores, places in zip(fine, batch["places"]):
            right += int((scores[8 * places[:, 0] + places[:, 1]] > 0.5).sum())
            count += len(places)
    return right / count
"""
SECTION = "batch_size: 8, loss: 'spots_net:loss', optimizer: {kind: adam, lr: 2e-2}"
RECIPE = f"""\
model: {{kind: "spots_net:Detector"}}
data: {{kind: "spots_net:spots", collate: "spots_net:collate"}}
moments: {{batch_size: 12}}
train: {{epochs: 12, {SECTION}}}
finetune: {{epochs: 1, {SECTION}}}
prune:
  target: {{macs: 60%}}
  repair: top-down
  match: {{steps: 20}}
  retrain: {{epochs: 1, {SECTION}}}
reconstruct: {{target: {{macs: 60%}}, held_out: 32, alone: 16}}
fuse: {{layers: [[conv3, coarse]]}}
expand: {{strategy: cl, rate: 2}}
report: {{latency_repeats: 2, plots: false, metrics: ["spots_net:found"]}}
"""


@pytest.fixture
def own(beside_module):
    return beside_module("spots_net", CODE, RECIPE)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder with the module, the recipe and a trained network."""
    folder = tmp_path_factory.mktemp("spots")
    (folder / "spots_net.py").write_text(CODE)
    (folder / "own.yaml").write_text(RECIPE)
    outcome = program("train", "own.yaml", cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder


@pytest.fixture
def trained(own, once):
    shutil.copytree(once / "runs", own.parent / "runs")
    return own


def figures(folder) -> dict[str, float]:
    return {row["name"]: row["after"][0] for row in report(folder)["figures"]}


def batch() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_is_trained_by_what_training_returns(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert figures("runs/own-train")["test found"] > 0.7
    (header, *_) = Path("runs/own-train/metrics.csv").read_text().splitlines()
    assert "train_loss,val_found," in header
    network = load(Path("runs/own-train/model.pt")).network
    assert sorted(network.train()(batch())) == ["coarse", "fine"]
    assert [tuple(one.shape) for one in network.eval()(batch())] == [(3, 64), (3, 16)]


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_it_is_pruned_rung_by_rung(trained, call, criterion):
    outcome = call("prune", trained, f"prune.criterion={criterion}", "-c", "runs/own-train")
    assert outcome.status == 0, outcome.err
    after, metrics = figures("runs/own-prune"), figures("runs/own-train")
    assert after["MACs"] <= 0.6 * metrics["MACs"]
    ladder = rows("runs/own-prune", "repairs")
    names = [row[0] for row in ladder]
    assert names == ["cut", "norms", "top-down", "norms behind top-down", "match"]
    divergences = {row[0]: row[1][0] if isinstance(row[1], list) else row[1] for row in ladder}
    assert divergences["top-down"] < divergences["cut"]
    assert divergences["match"] <= min(divergences.values())
    network = load(Path("runs/own-prune/model.pt")).network
    assert sorted(network.train()(batch())) == ["coarse", "fine"]
    told = json.loads(call("evaluate", trained, "-c", "runs/own-prune", "--json").out)["figures"]
    assert {row["name"]: row["after"][0] for row in told}["test found"] == after["test found"]


def test_fisher_is_refused(trained, call):
    outcome = call("prune", trained, "prune.criterion=fisher", "-c", "runs/own-train")
    assert outcome.status == 2
    assert "prune.criterion: fisher knows divergences of classes and of single tensors" in outcome.err


def test_blocks_end_before_what_it_returns(trained, call):
    outcome = call("prune", trained, "prune.blocks={}", "~prune.match", "~prune.retrain", "-c", "runs/own-train")
    assert outcome.status == 0, outcome.err
    assert "blocks" in [row[0] for row in rows("runs/own-prune", "repairs")]


def test_divergences_are_of_the_raw_maps(trained, call):
    """Against a loop over images with each tensor's channels, in float64."""
    assert call("prune", trained, "~prune.match", "~prune.retrain", "-c", "runs/own-train").status == 0
    ladder = rows("runs/own-prune", "repairs")
    original, pruned = (load(Path(f"runs/own-{verb}/model.pt")).network.double() for verb in ("train", "prune"))
    sys.path.insert(0, str(trained.parent))
    import spots_net

    images = torch.stack([spots_net.spots()["validation"][index][0] for index in range(32)]).double()
    shares = []
    for raw in ("fine", "coarse"):
        forms = []
        for network in (original, pruned):
            network.eval()
            network.outputs.train()
            forms.append(network(images)[raw].flatten())
        expected, found = (form.tolist() for form in forms)
        mean = sum(expected) / len(expected)
        variance = sum((value - mean) ** 2 for value in expected) / len(expected)
        error = sum((one - other) ** 2 for one, other in zip(found, expected, strict=True)) / len(expected)
        shares.append(error / variance)
    least = min(float(row[1][0] if isinstance(row[1], list) else row[1]) for row in ladder)
    assert least == pytest.approx(sum(shares) / 2, rel=1e-4)  # networks are float32 in the ladder


@pytest.mark.parametrize("verb", ["reconstruct", "fuse", "finetune", "expand"])
def test_other_verbs_take_it(trained, call, verb):
    outcome = call(verb, trained, *([] if verb == "expand" else ["-c", "runs/own-train"]))
    assert outcome.status == 0, outcome.err
    assert "test found" in figures(f"runs/own-{verb}")
    assert call("validate", trained).status == 0
    assert call(verb, trained, "--dry-run", *([] if verb == "expand" else ["-c", "runs/own-train"])).status == 0


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_what_eval_mode_returns_is_exported(trained, call, ending):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    outcome = call("export", "runs/own-train", "--out", f"net.{ending}", "--json")
    assert outcome.status == 0, outcome.err
    assert max(json.loads(outcome.out)["checks"].values()) < 1e-5
    expected = load(Path("runs/own-train/model.pt")).network.eval()(batch())
    if ending == "pt2":
        read = torch.export.load("net.pt2").module()(batch())
    elif ending == "onnx":
        runtime = pytest.importorskip("onnxruntime").InferenceSession(Path("net.onnx").read_bytes())
        read = [torch.from_numpy(one) for one in runtime.run(None, {runtime.get_inputs()[0].name: batch().numpy()})]
    else:
        read = load(Path("net.pt")).network(batch())
    assert len(read) == 2
    for one, other in zip(read, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # other libraries sum in another order


def test_two_processes_find_what_one_finds(trained):
    folder, words = trained.parent, ("~prune.retrain", "-c", "runs/own-train")
    done = torchrun("-m", "compresskit", "prune", "own.yaml", *words, "--out", "two", cwd=folder)
    assert done.returncode == 0, done.stderr
    alone = program("prune", "own.yaml", *words, "--out", "one", cwd=folder)
    assert alone.status == 0, alone.err
    one, two = (figures(folder / name) for name in ("one", "two"))
    assert one["MACs"] == two["MACs"]
    assert one["test found"] == pytest.approx(two["test found"], abs=0.03)  # match sums gradients in another order


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("~train.loss", "loss: only a function of yours knows what targets of any structure mean; name it as loss:"),
        ("~report.metrics", "report.metrics: only functions of yours know what targets of any structure mean"),
        ("model={kind: convnet, channels: [4]}", "model: convnet makes as many outputs as data have classes"),
        ("train.monitor=accuracy", "monitor: accuracy was given, but the data set is for own; use found"),
        ("train.accumulate=2", "accumulate: 2 was given, and a batch whose targets are of any structure"),
    ],
)
def test_what_is_missing_is_said_before_any_training(own, call, change, words):
    refused(call("train", own, change), 2, words)
    assert not (own.parent / "runs").exists()
