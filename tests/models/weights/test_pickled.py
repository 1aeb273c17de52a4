"""Files with Python objects in them: tensors come out as torch would give them, and no object is made."""

import argparse
import functools
import logging
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.optim import swa_utils

from compresskit.errors import CheckpointError
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


def test_views_that_are_stored_negated(net, tmp_path):
    """The imaginary part of a conjugate is a view of numbers of the other sign, and a flag."""
    net.register_buffer("flipped", torch.randn(5, dtype=torch.complex64).conj().imag)
    assert net.flipped.is_neg()
    torch.save(net, tmp_path / "whole.pt")
    same(read_state(tmp_path / "whole.pt").state, net.state_dict())


@pytest.mark.parametrize("wrap", [fx.symbolic_trace, torch.compile, swa_utils.AveragedModel, nn.DataParallel])
def test_modules_that_are_made_of_others(wrap, tmp_path):
    whole = wrap(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()))
    torch.save(whole, tmp_path / "whole.pt")
    same(read_state(tmp_path / "whole.pt").state, whole.state_dict())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols(protocol, net, tmp_path):
    torch.save({"net": net}, tmp_path / "whole.pt", pickle_protocol=protocol)
    same(read_state(tmp_path / "whole.pt").state, net.state_dict())


@pytest.mark.parametrize("kind", [torch.uint16, torch.int8, torch.bool])
def test_types_of_buffers(kind, net, tmp_path):
    net.register_buffer("table", torch.tensor([[0, 1], [1, 1]]).to(kind))
    torch.save(net, tmp_path / "whole.pt")
    same(read_state(tmp_path / "whole.pt").state, net.state_dict())


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3, dtype=torch.complex64), "not table (complex64, strided)"),
        (torch.ones(3).to(torch.float8_e5m2), "not table (float8_e5m2, strided)"),
        (torch.eye(3).to_sparse(), "more than a state dict (table: _rebuild_sparse_tensor)"),
        (torch.empty(3, device="meta"), "more than a state dict (table: _rebuild_meta_tensor_no_storage)"),
    ],
)
def test_types_that_no_layer_takes(tensor, message, net, tmp_path):
    """Refused in the net, no matter beside it."""
    torch.save({"model": net, "other": tensor}, tmp_path / "whole.pt")
    same(read_state(tmp_path / "whole.pt").state, net.state_dict())
    net.register_buffer("table", tensor)
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_state(tmp_path / "whole.pt")


def test_what_is_no_tensor_is_named(net, tmp_path):
    torch.save({"mine": net, "epoch": 3, "run": Path("a")}, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"than a state dict \(mine: module Net, epoch: int, run: \w+\)"):
        read_state(tmp_path / "whole.pt")


@pytest.mark.filterwarnings("ignore")  # of a part of torch that moves elsewhere
def test_modules_that_keep_numbers_elsewhere_are_refused(net, tmp_path):
    small = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    torch.save(small, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="0 is a quantised Linear, which keeps its numbers in no tensor"):
        read_state(tmp_path / "whole.pt")
    net.conv._register_state_dict_hook(hook)
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="conv, a Conv2d, changes its state dict by a hook"):
        read_state(tmp_path / "whole.pt")


def hook(module, state, prefix, _):
    state[f"{prefix}weight"] = 2 * state[f"{prefix}weight"]


def test_hooks_that_change_no_tensor(tmp_path):
    normed = nn.utils.spectral_norm(nn.Linear(4, 3))
    torch.save(normed, tmp_path / "whole.pt")
    same(read_state(tmp_path / "whole.pt").state, normed.state_dict())


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


def rewritten(source, path, parts) -> None:
    """A copy of the archive with other content for the parts named."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as other:
        for name in archive.namelist():
            other.writestr(name, parts.get(name.partition("/")[2], archive.read(name)))


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
