"""Weights as people have them: under prefixes and keys, averaged, halved, in shards, and for other classes."""

import argparse
import json
import logging
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compresskit.errors import CheckpointError, RecipeError
from compresskit.models.heads import classifiers
from compresskit.models.torchvision_zoo import Torchvision
from compresskit.models.weights.files import read_state
from compresskit.models.weights.fitting import load_weights


class Net(nn.Module):
    def __init__(self, classes: int = 10, aux: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.body, self.fc = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, classes)
        if aux:
            self.aux_classifier = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.body(self.norm(self.conv(x)).mean((2, 3))))


def state(seed: int = 1, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Net(**options).state_dict()


def prefixed(prefix: str):
    return lambda found: {f"{prefix}{name}": tensor for name, tensor in found.items()}


def check_loaded(net: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, expected[name]), name


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


PREFIXES = [
    *("module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder.", "module._orig_mod.", "ema_model.module.")
]


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        *((prefixed(prefix), f"{prefix} was taken off 11 names") for prefix in PREFIXES),
        (lambda found: {"state_dict": found, "epoch": 3}, ""),
        (lambda found: {"model": found, "optimizer": {"state": {}}}, ""),
        (lambda found: {"model_state_dict": found, "loss": 0.5}, ""),
        (lambda found: {"model": {"state_dict": prefixed("module.")(found)}}, "module. was taken off 11 names"),
        (lambda found: {"state_dict": state(2), "state_dict_ema": found}, "weights (state_dict_ema) were taken"),
        (lambda found: {"ema": prefixed("module.")(found), "model": state(2)}, "averaged weights (ema) were taken"),
        (lambda found: {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "state_dict": found}, ""),
        (lambda found: {n: t for n, t in found.items() if "tracked" not in n}, ""),
        (lambda found: prefixed("model.")(found) | {"loss.weight": torch.ones(3)}, "left out, .* loss.weight"),
        (lambda found: found | {"aux_classifier.weight": torch.ones(3)}, "left out, .* aux_classifier.weight"),
        (lambda found: found | {"n_averaged": torch.tensor(3)}, "left out, .* n_averaged"),
    ],
)  # fmt: skip
def test_weights_are_found_and_what_was_done_is_said(wrap, note, tmp_path, said):
    torch.save(wrap(state()), tmp_path / "weights.pth")
    net = Net()
    load_weights(net, tmp_path / "weights.pth")
    check_loaded(net, state())
    assert all(part in said() for part in note.split(" .* "))
    assert bool(said()) == bool(note)


def test_a_model_that_wraps_what_the_file_holds(tmp_path, said):
    torch.save(state(), tmp_path / "weights.pth")
    net = nn.ModuleDict({"inner": Net()})
    load_weights(net, tmp_path / "weights.pth")
    check_loaded(net["inner"], state())
    assert "inner. was put before 11 names" in said()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_that_of_the_model(kind, tmp_path, said):
    found = {name: t.to(kind) if t.is_floating_point() else t for name, t in state().items()}
    save_file(found, tmp_path / "weights.safetensors")
    net = Net()
    load_weights(net, tmp_path / "weights.safetensors")
    check_loaded(net, {name: tensor.float() for name, tensor in found.items()})
    assert "tensors of 16 bits became float32" in said()


def shards(folder, kind: str) -> dict[str, str]:
    found, places = state(), {}
    for number, part in enumerate((list(found)[:4], list(found)[4:])):
        name = f"model-{number}.{kind}"
        write = save_file if kind == "safetensors" else torch.save
        write({key: found[key] for key in part}, folder / name)
        places |= dict.fromkeys(part, name)
    return places


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(kind, tmp_path):
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards(tmp_path, kind)}))
    net = Net()
    load_weights(net, index)
    check_loaded(net, state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: places | {"conv.weight": "../model-0.bin"}, r"it names '../model-0.bin', which is no file of"),
        (lambda places: places | {"conv.weight": "/etc/passwd"}, "which is no file of its own folder"),
        (lambda places: places | {"conv.weight": "model-1.bin"}, "model-1.bin does not hold conv.weight"),
        (lambda places: places | {"conv.weight": "model-2.bin"}, "model-2.bin: no such file"),
        (lambda places: places | {"conv.weight": 3}, "it is no index of shards"),
        (lambda places: [], "it is no index of shards"),
    ],
)
def test_indices_that_name_what_there_is_not(change, message, tmp_path):
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": change(shards(tmp_path, "bin"))}))
    with pytest.raises(CheckpointError, match=message):
        read_state(index)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"weight_map": null}', '"text"'])
def test_damaged_indices(text, tmp_path):
    (tmp_path / "a.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="it is no index of shards"):
        read_state(tmp_path / "a.index.json")


def test_tied_tensors_that_differ_in_the_file_are_refused(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    torch.save({"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)}, tmp_path / "tied.pt")
    with pytest.raises(CheckpointError, match=r"0.weight and 1.weight are one tensor in the model, and differ"):
        load_weights(net, tmp_path / "tied.pt")


def test_another_number_of_classes_is_proposed_where_nothing_else_is_wrong(tmp_path):
    torch.save(state(classes=1000), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"wrong shape: fc.weight .*; for another number .* model.head: fresh"):
        load_weights(Net(10), tmp_path / "weights.pth")
    torch.save(state(classes=1000) | {"more": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"not in the model: more; wrong shape: fc.weight") as error:
        load_weights(Net(10), tmp_path / "weights.pth")
    assert "head" not in str(error.value)


def test_names_that_are_near_are_proposed(tmp_path):
    found = state()
    found["body.0.weigth"] = found.pop("body.0.weight")
    torch.save(found, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"missing: body.0.weight; .* did you mean 'body.0.weigth'"):
        load_weights(Net(), tmp_path / "weights.pth")


def test_the_classifier_is_the_last_layer_with_the_models_outputs():
    class TwoHeads(Net):
        def forward(self, x):
            x = self.body(self.norm(self.conv(x)).mean((2, 3)))
            return (self.fc(x) + self.other(x)) / 2

    assert classifiers(Net(7), (3, 8, 8), None) == (["fc"], 7)
    two = TwoHeads(7)
    two.other = nn.Linear(6, 7)
    assert classifiers(two, (3, 8, 8), None) == (["fc", "other"], 7)
    with pytest.raises(RecipeError, match="no linear layer .* at the end of Sequential makes its 5 outputs"):
        classifiers(nn.Sequential(nn.Linear(4, 10), nn.GLU()), (4,), None)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "backbone."])
def test_a_fresh_classifier_on_weights_for_1000_classes(prefix, tmp_path, said):
    torch.manual_seed(1)
    whole = Torchvision(name="squeezenet1_1").build((3, 32, 32), 1000).state_dict()
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in whole.items()}}, tmp_path / "w.pth")
    torch.manual_seed(2)
    model = Torchvision(name="squeezenet1_1", weights=str(tmp_path / "w.pth"), head="fresh")
    net = model.build((3, 32, 32), 10)
    assert net.classifier[1].weight.shape == (10, 512, 1, 1)
    for name, tensor in net.state_dict().items():
        assert name.startswith("classifier.1") or torch.equal(tensor, whole[name]), name
    assert "in the place of its classifier classifier.1 there is a fresh one with 10 outputs" in said()


def test_a_dropped_classifier_leaves_the_features():
    torch.manual_seed(0)
    net = Torchvision(name="resnet18", head="drop", arguments={}).build((3, 32, 32), 512)
    assert isinstance(net.fc, nn.Identity)
    with pytest.raises(RecipeError, match=r"returns \(1, 512\) for one sample, the data need \(1, 10\)"):
        Torchvision(name="resnet18", head="drop").build((3, 32, 32), 10)


def test_a_fresh_classifier_needs_weights():
    with pytest.raises(RecipeError, match="model.head: fresh replaces the classifier of trained weights"):
        Torchvision(name="resnet18", head="fresh").build((3, 32, 32), 10)


def test_a_class_that_asks_for_a_version_takes_its_own(tmp_path):
    torch.manual_seed(1)
    expected = Torchvision(name="mnasnet0_5").build((3, 32, 32), 10).state_dict()
    save_file(expected, tmp_path / "weights.safetensors")
    net = Torchvision(name="mnasnet0_5").build((3, 32, 32), 10)
    load_weights(net, tmp_path / "weights.safetensors")
    check_loaded(net, expected)


@pytest.mark.timeout(60)
def test_a_name_of_many_parts_takes_little(tmp_path):
    """Each part may be the end of a prefix: all prefixes together are as long as the square of the name."""
    torch.save({".".join(["a"] * 20_000): torch.ones(3, 3)}, tmp_path / "weights.pth")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="do not fit the model; missing: weight; not in the model: a.a.a"):
        load_weights(nn.Linear(3, 3, bias=False), tmp_path / "weights.pth")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 2**24


def test_buffers_that_the_model_makes_itself_may_stand_in_the_file(tmp_path, said):
    net = Net()
    net.body.register_buffer("index", torch.arange(6), persistent=False)
    torch.save(state() | {"body.index": torch.zeros(6, dtype=torch.int64)}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    check_loaded(net, state())
    assert torch.equal(net.body.index, torch.arange(6))
    assert "left out, since the model has no place for them: body.index" in said()
    torch.save(state() | {"body.index": torch.zeros(7)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"not in the model: body\.index"):
        load_weights(net, tmp_path / "w.pth")
