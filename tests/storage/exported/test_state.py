"""`compresskit.load_state`: weights of any file that people have, into a module of theirs."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import compresskit
from compresskit.errors import CheckpointError
from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, save
from compresskit.storage.exported.state import write_state


def net(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, classes))


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def checkpoint(path: Path, module: nn.Module) -> dict:
    network, mask = trace(module), torch.rand(4, 2, 3, 3) > 0.5
    apply_masks(network, {"0.weight": mask})
    save(Checkpoint(network.eval(), {}, (2, 8, 8), "classification", {}, [], {"0.weight": mask}), path)
    return network.state_dict()


def wrapped(path: Path, module: nn.Module) -> dict:
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in module.state_dict().items()}}, path)
    return module.state_dict()


def pickled(path: Path, module: nn.Module) -> dict:
    torch.save(module, path)
    return module.state_dict()


def written(path: Path, module: nn.Module) -> dict:
    assert write_state(trace(module), path, {"mean": [0.5]}) == []
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
        ("text.txt", lambda path: path.write_text("text"), "no state dict can be read from it"),
    ],
)
def test_what_is_no_state_dict(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        compresskit.load_state(tmp_path / name)


def test_a_checkpoint_as_weights_of_a_recipe_says_how(tmp_path):
    from compresskit.models.weights.files import read_state

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
    write_state(trace(module), tmp_path / name, {})
    compresskit.load_state(tmp_path / name, other)
    assert same(other.state_dict(), module.state_dict())
    assert other.two.weight is other.one.weight
