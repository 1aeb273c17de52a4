"""Files with Python objects in them: tensors come out as torch would give them, and no object is made."""

import argparse
import functools
import logging
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from compresskit.errors import CheckpointError
from compresskit.models.weights import pickled
from compresskit.models.weights.files import read_state
from compresskit.models.weights.fitting import load_weights


class Net(nn.Module):
    """With all that a module can keep tensors in."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.inner = nn.ModuleList([Net(depth - 1)] if depth else [])
        self.tied = nn.Parameter(self.conv.weight.data)
        self.register_buffer("table", torch.arange(6).view(2, 3).T)
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_parameter("none", None)
        self.names, self.act, self.best = {0: "cat"}, functools.partial(torch.relu), argparse.Namespace(lr=0.1)
        self.part = nn.Parameter(torch.randn(10)[2:5])
        self.empty = nn.Parameter(torch.empty(0, 3))


class Mapping(dict):
    """A trainer's own kind of dictionary."""


def same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: {"model": net, "epoch": 3, "optimizer": torch.optim.SGD(net.parameters(), 0.1)},
        lambda net: {"model": None, "ema": net},
        lambda net: Mapping(state_dict=net.state_dict(), hub=Mapping(log=[1, 2], path=Path("runs"))),
        lambda net: {"config": argparse.Namespace(lr=0.1), "state_dict": net.state_dict()},
        lambda net: nn.DataParallel(net),
    ],
    ids=["module", "beside others", "averaged", "own mapping", "namespace", "wrapped"],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_those_that_torch_reads(wrap, kind, net, tmp_path):
    net.to(kind)
    torch.save(wrap(net), tmp_path / "whole.pt")
    found = read_state(tmp_path / "whole.pt").state
    same({name.removeprefix("module."): tensor for name, tensor in found.items()}, net.state_dict())


def test_tied_tensors_stay_one(net, tmp_path):
    torch.save(net, tmp_path / "whole.pt")
    found = read_state(tmp_path / "whole.pt").state
    assert found["tied"].data_ptr() == found["conv.weight"].data_ptr()


def test_a_pickled_module_is_said_to_be_one(net, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    torch.save({"ema": net}, tmp_path / "whole.pt")
    other = Net()
    load_weights(other, tmp_path / "whole.pt")
    same(other.state_dict(), net.state_dict())
    assert "the averaged weights (ema) were taken; a module was pickled there (Net); its tensors" in caplog.text


class Evil:
    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, ("touch pwned",)),
        (getattr, ({}, "clear")),
        (eval, ("open('pwned', 'w')",)),
        (exec, ("open('pwned', 'w')",)),
        (__import__, ("os",)),
        (open, ("pwned", "w")),
        (torch.load, ("pwned",)),
        (functools.partial, (os.system, "touch pwned")),
        (functools.reduce, (os.system, ["touch pwned"])),
    ],
    ids=lambda call: call[0].__name__,
)
def test_nothing_is_called(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.ones(3)}, "hook": Evil(*call)}, tmp_path / "evil.pt")
    same(read_state(tmp_path / "evil.pt").state, {"weight": torch.ones(3)})
    torch.save({"weight": torch.ones(3), "bias": Evil(*call)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="it holds more than a state dict"):
        read_state(tmp_path / "evil.pt")
    assert os.listdir(tmp_path) == ["evil.pt"]


def test_a_pickle_cannot_change_what_reads_the_next_one(net, tmp_path):
    """BUILD sets attributes of whatever lies on the stack: of functions and classes that were looked up, too."""
    torch.save(net, tmp_path / "whole.pt")
    before = vars(pickled._tensor).copy(), pickled._tensor.__defaults__
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "torch.nn.modules.conv\nConv2d"):
        for state in ({"load": 1}, (None, {"__defaults__": (1,), "__new__": 1}), (len, (1,), {}, {"x": 1})):
            code = f"c{name}\n".encode() + pickle.dumps(state, 2)[2:-1].replace(b"c__builtin__\nlen\n", b"I1\n") + b"b."
            rewritten(tmp_path / "whole.pt", tmp_path / "other.pt", {"data.pkl": code})
            with pytest.raises(CheckpointError):
                read_state(tmp_path / "other.pt")
    assert (vars(pickled._tensor), pickled._tensor.__defaults__) == before
    same(read_state(tmp_path / "whole.pt").state, net.state_dict())


def rewritten(source, path, parts) -> None:
    """A copy of the archive with other content for the parts named."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as other:
        for name in archive.namelist():
            other.writestr(name, parts.get(name.partition("/")[2], archive.read(name)))


def content(source, name: str) -> bytes:
    with zipfile.ZipFile(source) as archive:
        return archive.read(f"{archive.namelist()[0].partition('/')[0]}/{name}")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"byteorder": b"big"}, "written on a machine with another order of bytes"),
        ({"data/0": b"\0" * 8}, "no state dict can be read from it"),
        ({"data.pkl": b""}, "no state dict can be read from it"),
        ({"data.pkl": b"]q\0h\0a."}, "it holds more than a state dict"),  # a list that holds itself
    ],
)
def test_damaged_files(parts, message, net, tmp_path):
    torch.save(net, tmp_path / "whole.pt")
    rewritten(tmp_path / "whole.pt", tmp_path / "damaged.pt", parts)
    with pytest.raises(CheckpointError, match=message):
        read_state(tmp_path / "damaged.pt")


def test_a_parameter_that_is_no_tensor_is_not_left_out(net, tmp_path):
    net.conv._parameters["weight"] = Path("nowhere")
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="it holds more than a state dict"):
        read_state(tmp_path / "whole.pt")


def test_a_module_inside_of_itself(net, tmp_path):
    net._modules["inner"] = net
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="no state dict can be read from it"):
        read_state(tmp_path / "whole.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")
def test_programs_are_refused_with_the_way_out(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(3, 3)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"it is a program \(TorchScript\).*torch.jit.load\('program.pt'\)"):
        read_state(tmp_path / "program.pt")


def test_objects_of_before_archives_are_refused(net, tmp_path):
    torch.save(net, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"it holds a Python object, [\w.]+, which is never run"):
        read_state(tmp_path / "old.pt")
