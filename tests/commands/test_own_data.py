"""Data, losses and metrics of the user's own, through the program."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.storage.checkpoint import load
from compresskit.training import inputs, loop
from tests.commands.conftest import program
from tests.commands.test_bad_input import refused
from tests.forked.start import torchrun

CODE = """
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

def digits(count, noise=0.0):
    random = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 3
    inputs = torch.randn(count, 1, 8, 8, generator=random)
    inputs[:, 0, 0] += 3.0 * (labels[:, None] - 1)
    return TensorDataset(inputs, labels)

class Two(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 8, 3)
        self.words, self.head = torch.nn.Embedding(5, 8), torch.nn.Linear(16, num_classes)

    def forward(self, image, words):
        seen = self.conv2(torch.relu(self.conv1(image))).relu().mean((2, 3))
        return self.head(torch.cat([seen, self.words(words).mean(1)], 1))

class WithWords(Dataset):
    def __init__(self, count):
        self.clean = digits(count)
    def __len__(self):
        return len(self.clean)
    def __getitem__(self, index):
        image, label = self.clean[index]
        return image, torch.arange(4) % (1 + label), label

def with_words():
    return WithWords(120), WithWords(36)

class Words(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.words, self.head = torch.nn.Embedding(5, 8), torch.nn.Linear(8, num_classes)

    def forward(self, words):
        return self.head(self.words(words).mean(1))

def bytes(high, kind="uint8"):
    words = (torch.arange(360).view(120, 3) % high).to(getattr(torch, kind))
    return TensorDataset(words, torch.arange(120) % 3)

class Noisy(Dataset):
    classes = ["one", "two", "three"]
    def __init__(self, count):
        self.clean = digits(count)
    def __len__(self):
        return len(self.clean)
    def __getitem__(self, index):
        image, label = self.clean[index]
        return {"image": image + 0.1 * torch.randn(image.shape), "label": self.classes[label]}

class Stream(IterableDataset):
    def __init__(self, count):
        self.clean = digits(count)
    def __iter__(self):
        for index in torch.randperm(len(self.clean)):
            yield self.clean[index]

def focal(outputs, targets, power=2.0):
    chosen = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return -((1 - chosen.exp()) ** power * chosen).mean()

def pairs(outputs, targets):
    return focal(outputs, targets), 1

def frozen(outputs, targets):
    return focal(outputs.detach(), targets)

def broken(outputs, targets):
    return len(3)

def recall(outputs, targets):
    found = outputs.argmax(1)
    return sum(float((found[targets == c] == c).float().mean()) for c in range(3)) / 3

accuracy = recall
number = 3

def noisy(count=120):
    return {"train": Noisy(count), "val": Noisy(30), "test": Noisy(36)}

def stream(count=120):
    return Stream(count), Stream(36)
"""
RECIPE = """\
model: {kind: convnet, channels: [4, 8]}
data: {kind: "own_data:noisy", arguments: {count: 120}, inputs: image, targets: label}
train: {epochs: 3, batch_size: 32, optimizer: {kind: adam, lr: 5e-3}}
finetune: {epochs: 1, batch_size: 32, optimizer: {kind: adam, lr: 1e-3}}
fuse: {layers: [[conv2, head]]}
prune: {target: {params: 70%}, images: 100}
reconstruct: {target: {params: 99%}}
report: {latency_repeats: 2, plots: false}
"""


@pytest.fixture
def own(beside_module):
    return beside_module("own_data", CODE, RECIPE)


def weights(folder):
    return load(Path(folder) / "model.pt").network.state_dict()


@pytest.mark.parametrize("data", [[], ["data={kind: 'own_data:stream', classes: 3}"]], ids=["numbered", "stream"])
def test_every_verb_takes_data_of_the_users_own(call, own, data):
    assert call("validate", own, *data).status == 0
    for verb, source in (("train", ""), ("fuse", "train"), ("prune", "train"), ("finetune", "fuse")):
        outcome = call(verb, own, *data, *(["-c", f"runs/own-{source}"] if source else []))
        assert outcome.status == 0, outcome.err
    outcome = call("evaluate", own, *data, "-c", "runs/own-train", "--json")
    figures = {row["name"]: row["after"][0] for row in json.loads(outcome.out)["figures"]}
    trained = json.loads((own.parent / "runs/own-train/report.json").read_text())["figures"]
    assert figures["test accuracy"] == trained[0]["after"][0]
    assert figures["test accuracy"] > 0.34  # of three classes


@pytest.mark.parametrize("data", [[], ["data={kind: 'own_data:stream', classes: 3}"]], ids=["numbered", "stream"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(call, own, data, monkeypatch):
    assert call("train", own, *data, "--out", "whole").status == 0
    save = loop.state.save

    def killed(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.state, "save", killed)
    assert call("train", own, *data, "--out", "stopped").status != 0
    monkeypatch.undo()
    monkeypatch.chdir(own.parent)
    outcome = call("train", own, *data, "--out", "stopped", "--resume")
    assert outcome.status == 0, outcome.err
    one, other = weights("whole"), weights("stopped")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    changed = call("train", own, *data, "data.arguments={count: 99}", "--out", "whole", "--resume")
    assert changed.status == 1
    assert "(changed: data.arguments.count, the data)" in changed.err


def test_two_processes_share_the_samples(own):
    arguments = ("train", "own.yaml", "train.batch_size=40", "--out", "two")
    done = torchrun("-m", "compresskit", *arguments, cwd=own.parent)
    assert done.returncode == 0, done.stderr
    alone = program("train", "own.yaml", "train.batch_size=40", "--out", "one", cwd=own.parent)
    assert alone.status == 0, alone.err
    one, two = (weights(own.parent / name)["conv1.weight"] for name in ("one", "two"))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)  # sums are rounded otherwise


def test_code_of_data_is_refused_where_none_may_run(call, own, monkeypatch):
    monkeypatch.setenv("COMPRESSKIT_NO_CODE", "")
    refused(
        call("train", own, "--no-code"), 2, "data.target: own_data:noisy would be imported and run, which --no-code"
    )
    monkeypatch.setenv("COMPRESSKIT_NO_CODE", "")
    refused(call("validate", own, "data=own_data:lost"), 2, "data.target: own_data has no 'lost'; there are:")


def test_a_loss_and_metrics_of_the_users_own_are_trained_and_reported(call, own):
    options = ("train.loss={kind: 'own_data:focal', arguments: {power: 0.0}}", "report.metrics=['own_data:recall']")
    assert call("validate", own, *options).status == 0
    assert call("train", own, *options).status == 0
    assert call("train", own, "--out", "plain").status == 0
    one, other = weights("runs/own-train"), weights("plain")  # with power 0 it is the cross-entropy
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=0)  # formulas differ in float32
    figures = json.loads((own.parent / "runs/own-train/report.json").read_text())["figures"]
    found = {row["name"]: row["after"][0] for row in figures}
    assert found["test recall"] == pytest.approx(found["test accuracy"])  # all classes are as large
    (header, *_) = (own.parent / "runs/own-train/metrics.csv").read_text().splitlines()
    assert "val_accuracy,val_loss,val_recall" in header
    told = call("evaluate", own, "report.metrics=['own_data:recall']", "-c", "runs/own-train", "--json")
    assert {row["name"]: row["after"][0] for row in json.loads(told.out)["figures"]}["test recall"] == found[
        "test recall"
    ]
    short = call("train", own, "train.loss=own_data:focal", "--dry-run")
    assert short.status == 0, short.err


def test_losses_of_torch_take_arguments(call, own):
    smooth = "{kind: 'torch.nn:CrossEntropyLoss', arguments: {label_smoothing: 0.1}}"
    assert call("train", own, f"train.loss={smooth}", "--out", "torchs").status == 0
    assert call("train", own, "train.loss={kind: cross-entropy, label_smoothing: 0.1}", "--out", "ours").status == 0
    one, other = weights("torchs"), weights("ours")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("verb", ["validate", "train"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.loss=own_data:lost", "loss.target: own_data has no 'lost'"),
        ("train.loss=own_data:number", "loss.target: own_data:number is a int; it must be a function or a class"),
        (
            "train.loss=own_data:pairs",
            "loss: own_data:pairs returned tuple; return the mean over the batch, of shape ()",
        ),
        ("train.loss=own_data:frozen", "loss: own_data:frozen has no gradient by the outputs; compute it of tensors"),
        ("train.loss=own_data:broken", "loss: own_data:broken raised TypeError: object of type 'int' has no len()"),
        ("train.loss={kind: 'own_data:focal', arguments: {weight: 1}}", "raised TypeError: focal() got an unexpected"),
        ("train.loss=torch.nn:L1Loss", "loss: torch.nn:L1Loss raised"),
        ("report.metrics=['own_data:lost']", "report.metrics: own_data has no 'lost'"),
        ("report.metrics=['own_data:broken']", "report.metrics: broken raised TypeError: object of type 'int' has no"),
        ("report.metrics=['own_data:recall', 'own_data:recall']", "report.metrics: two are called 'recall'"),
        ("report.metrics=['own_data:accuracy']", "report.metrics: accuracy is a metric of the task already; rename"),
    ],
)
def test_what_cannot_be_trained_or_reported_is_refused_before_anything_runs(call, own, verb, option, message):
    refused(call(verb, own, option), 2, message)
    assert not (own.parent / "runs").exists()


WORDS = ("data={kind: 'own_data:with_words', inputs: [0, 1], targets: 2, classes: 3}", "model=own_data:Two")


def test_several_inputs_and_tokens_go_through_the_verbs(call, own):
    hint = "finetune.distill={kind: hint, teacher: runs/own-train, layers: [[conv2, conv2]]}"
    assert call("validate", own, *WORDS).status == 0
    chain = (("train", "", ()), ("prune", "train", ()), ("reconstruct", "train", ()), ("finetune", "prune", (hint,)))
    for verb, source, options in chain:
        start = ["-c", f"runs/own-{source}"] if source else []
        outcome = call(verb, own, *WORDS, *options, *start)
        assert outcome.status == 0, outcome.err
    pruned = load(Path("runs/own-prune/model.pt"))
    assert pruned.input_shape == ((1, 8, 8), (4,))
    words = torch.arange(4).expand(2, 4)
    assert pruned.network((torch.randn(2, 1, 8, 8), words)).shape == (2, 3)


def test_whole_numbers_that_nothing_looks_up_are_refused(call, own):
    data = "data={kind: 'own_data:with_words', inputs: 1, targets: 2, classes: 3}"
    words = "the network's input is of whole numbers, which no embedding of the model"
    refused(call("train", own, "model={kind: mlp, widths: [4]}", data), 2, words)


@pytest.mark.parametrize("verb", ["validate", "train"])
def test_bytes_are_no_tokens_and_the_table_has_all_of_them(call, own, verb):
    data = "data={kind: 'own_data:bytes', arguments: {high: 5}}"
    model = "model=own_data:Words"
    refused(call(verb, own, model, data), 2, "data: words looks the network's input up as it is stored")
    data = "data={kind: 'own_data:bytes', arguments: {high: 6, kind: int64}}"
    told = "data: the network's input, training part: words has entries from 0 to 4, and the data hold 5"
    refused(call(verb, own, model, data), 1, told)
    assert not (own.parent / "runs").exists()


def test_several_arrays_go_through_the_verbs(call, own):
    random, labels = np.random.default_rng(0), np.arange(120) % 3
    images = random.integers(0, 60, (120, 1, 8, 8)) + 60 * labels[:, None, None, None]
    words = (np.arange(4) % (1 + labels[:, None])).astype(np.uint8)
    np.savez(own.parent / "two.npz", image=images.astype(np.uint8), words=words, targets=labels)
    data = "{kind: arrays, path: two.npz, inputs: [image, words], tokens: [words], validation: 20}"
    options = (f"data={data}", "model=own_data:Two")
    chain = (("train", ""), ("fuse", "train"), ("prune", "train"), ("finetune", "prune"))
    for verb, source in chain:
        outcome = call(
            verb, own, *options, "fuse.layers=[[conv1, conv2]]", *(["-c", f"runs/own-{source}"] * bool(source))
        )
        assert outcome.status == 0, (verb, outcome.err)
    told = call("inspect", "runs/own-train").out
    assert "inputs 1×8×8 and 4" in told
    mean = images[: len(images)].mean() / 255
    assert f"input 1 is normalised: mean {mean:.1g}"[:-1] in told
    assert "input 2" not in told
    start = ("-c", "runs/own-train", "--out", "other")
    augprune = call("prune", own, *options, "prune.criterion={kind: augprune}", *start)
    refused(augprune, 2, "prune.criterion: augprune augments images; take another criterion for these data")
    isometry = call("spectra", own, *options, "spectra.isometry={}", *start)
    refused(isometry, 2, "isometry: it is known of networks with one input, and this one has 2; leave it out")
    plain = call("finetune", own, "model=own_data:Two", f"data={data[:-1]}, normalize: none}}", "-c", "runs/own-train")
    refused(plain, 1, "trained on inputs of mean")


def test_a_token_behind_those_that_are_looked_at_is_no_fault_of_ours(call, own, monkeypatch):
    monkeypatch.setattr(inputs, "LOOKED_AT", 0)
    data = "data={kind: 'own_data:bytes', arguments: {high: 6, kind: int64}}"
    refused(call("train", own, "model=own_data:Words", data), 1, "train: a table was asked for an entry that it lacks")
