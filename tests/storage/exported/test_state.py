"""`compresskit.load_state`: weights of any file that people have, into a module of theirs."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import compresskit
from compresskit.errors import CheckpointError, RecipeError, ResourceError, UnsupportedModelError
from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.models.weights.files import read_state
from compresskit.storage.checkpoint import Checkpoint, save
from compresskit.storage.exported.state import state_of, write_state
from tests.pretended_gpu import pretended_gpu


def net(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, classes))


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def checkpoint(path: Path, module: nn.Module) -> dict:
    network, mask = trace(module), torch.rand(4, 2, 3, 3) > 0.5
    apply_masks(network, {"0.weight": mask})
    model = {"kind": "factory", "arguments": {"options": {}}}  # under a key that state dicts lie under, too
    save(Checkpoint(network.eval(), model, (2, 8, 8), "classification", {}, [], {"0.weight": mask}), path)
    return network.state_dict()


def wrapped(path: Path, module: nn.Module) -> dict:
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in module.state_dict().items()}}, path)
    return module.state_dict()


def pickled(path: Path, module: nn.Module) -> dict:
    torch.save(module, path)
    return module.state_dict()


def written(path: Path, module: nn.Module) -> dict:
    state, constants = state_of(trace(module))
    assert constants == []
    write_state(state, path, {"mean": [0.5]})
    return module.state_dict()


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (checkpoint, "model.pt"), (wrapped, "lightning.ckpt"), (pickled, "whole.pt"), (written, "net.safetensors"),
        (written, "net.pth"),
    ],
)  # fmt: skip
def test_what_people_have_goes_into_a_module(write, name, tmp_path):
    state, module = write(tmp_path / name, net(1)), net(2)
    found = compresskit.load_state(tmp_path / name, module)
    assert same(module.state_dict(), state)
    assert same(found, state)


def test_a_state_dict_alone_has_the_names_of_the_file(tmp_path):
    state = wrapped(tmp_path / "w.ckpt", net(1))
    assert same(compresskit.load_state(str(tmp_path / "w.ckpt")), {f"model.{name}": t for name, t in state.items()})


def test_a_classifier_for_other_classes_stays(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    state, module = checkpoint(tmp_path / "model.pt", net(1)), net(2, classes=7)
    with pytest.raises(CheckpointError, match="wrong shape: 3.weight"):
        compresskit.load_state(tmp_path / "model.pt", module)
    compresskit.load_state(tmp_path / "model.pt", module, fresh=["3"])
    assert torch.equal(module[0].weight, state["0.weight"])
    assert torch.equal(module[3].weight, net(2, classes=7)[3].weight)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("net.pt2", lambda path: path.write_bytes(b""), "a .pt2 file is a program; `compresskit export` makes a state"),
        ("model.pt", lambda path: path.write_bytes(b"PK\3\4" + b"0" * 100), "cut off or damaged"),
        ("model.pt", lambda path: None, "no such file"),
        (
            "model.pt",
            lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
            "it is a program .TorchScript",
        ),
        ("text.txt", lambda path: path.write_text("text"), "no state dict can be read from it"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")
def test_what_is_no_state_dict(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        compresskit.load_state(tmp_path / name)


def test_a_checkpoint_as_weights_of_a_recipe_says_how(tmp_path):
    checkpoint(tmp_path / "model.pt", net(1))
    with pytest.raises(CheckpointError, match=r"give it to --checkpoint, or .* export .*model.pt --out model.safete"):
        read_state(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_tensors_that_share_memory_are_written_under_each_name(name, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.register_buffer("turned", torch.arange(16.0).view(4, 4).T)

        def forward(self, x):
            return self.two(self.one(x)) @ self.turned

    module, other = Tied(), Tied()
    write_state(state_of(trace(module))[0], tmp_path / name, {})
    compresskit.load_state(tmp_path / name, other)
    assert same(other.state_dict(), module.state_dict())
    assert other.two.weight is other.one.weight


class Extra(nn.Linear):
    """With something beside its tensors in its state dict."""

    def get_extra_state(self) -> dict:
        return {"seen": 3}

    def set_extra_state(self, state: object) -> None:
        raise AssertionError("its own state stays")


def test_what_is_no_tensor_in_a_state_dict_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    one, other = Extra(3, 2), Extra(3, 2)
    torch.save(one.state_dict(), tmp_path / "w.pth")
    found = compresskit.load_state(tmp_path / "w.pth", other)
    assert "left out, since it is no tensor: _extra_state" in caplog.text
    assert same(found, {"weight": one.weight, "bias": one.bias})
    assert torch.equal(other.weight, one.weight)


def test_what_was_taken_is_said_without_a_model_too(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    torch.save({"ema": {"decay": 0.9}, "model": net(2), "model_ema": net(1).state_dict()}, tmp_path / "w.pth")
    assert same(compresskit.load_state(tmp_path / "w.pth"), net(1).state_dict())
    assert "w.pth: the averaged weights (model_ema) were taken" in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(3, 2, device="meta"), "weight of the model has no numbers (it is on the device meta)"),
        (lambda: nn.LazyLinear(2), "weight of the model has no numbers (its LazyModule has seen no batch)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_models_without_numbers(model, message, tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        compresskit.load_state(tmp_path / "w.pth", model())


def test_a_layer_that_the_model_has_not(tmp_path):
    torch.save(net(1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="fresh: the model has no layer 'head'; there are: 0, 1, 2, 3"):
        compresskit.load_state(tmp_path / "w.pth", net(2), fresh=["head"])


def test_a_model_in_16_bits_takes_them_as_they_are(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    torch.save(net(1).bfloat16().state_dict(), tmp_path / "w.pth")
    compresskit.load_state(tmp_path / "w.pth", module := net(2).bfloat16())
    assert same(module.state_dict(), net(1).bfloat16().state_dict())
    assert not caplog.text


def test_a_model_on_another_device(tmp_path):
    """Masks of -inf are the model's own numbers, with which those of the file are compared."""
    one, other = net(1), net(2)
    for module in (one, other):
        module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    torch.save(one.state_dict(), tmp_path / "w.pth")
    with pretended_gpu():
        other.to("cuda")
        compresskit.load_state(tmp_path / "w.pth", other)
        found = other.cpu().state_dict()
    assert same(found, one.state_dict())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is of Linux")
@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_a_full_disk_is_told(name, tmp_path):
    (tmp_path / f".{name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=rf"{name}: the disk is full"):
        write_state(net(1).state_dict(), tmp_path / name, {})
    assert not list(tmp_path.iterdir())
