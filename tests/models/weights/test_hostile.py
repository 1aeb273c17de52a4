"""Files of Python objects that are made to do harm: nothing is called, nothing changes, and little memory is taken."""

import functools
import os
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn

from compresskit.errors import CheckpointError
from compresskit.models.weights import pickled
from compresskit.models.weights.files import read_state
from tests.models.weights.test_pickled import Net, rewritten, same


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


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


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def get(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


OBJECT = b"cmine\nNet\n)\x81"  # on the stack, without anything in it


def small_modules(levels: int) -> bytes:
    """A pickle of modules of which each has the next one twice."""
    code = b""
    for level in range(levels):
        inner = b"(" + b"".join(text(name) + get(level - 1) for name in "ab") + b"u" if level else b""
        dictionaries = [text("_parameters") + b"}", text("_buffers") + b"}", text("_modules") + b"}" + inner]
        code += OBJECT + b"}(" + b"".join(dictionaries) + b"ub" + put(level)
    return code + b"."


def small_dictionaries(count: int) -> bytes:
    """A pickle of dictionaries of which each has the next one under every key."""
    code = OBJECT + put(0)
    for level in range(4):
        code += b"}(" + b"".join(text(str(key)) + get(level) for key in range(count)) + b"u" + put(level + 1)
    return code + b"."


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (small_modules(60), "the names of the tensors in its modules have more than 262,144 letters together"),
        (small_dictionaries(3000), "it holds more than a state dict"),
        (OBJECT + put(2**24) + b".", r"it holds more than a state dict \(Net\)"),  # its 2^24th thing, says the file
    ],
    ids=["modules", "dictionaries", "memo"],
)
def test_small_files_take_little(code, message, net, tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "_LETTERS", 2**18)
    torch.save(net, tmp_path / "whole.pt")
    rewritten(tmp_path / "whole.pt", tmp_path / "small.pt", {"data.pkl": b"\x80\x02" + code})
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message):
        read_state(tmp_path / "small.pt")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 2**26


@pytest.mark.parametrize("wrap", [lambda net: net, nn.Module.state_dict], ids=["module", "state dict"])
def test_parts_are_no_larger_than_the_file(wrap, net, tmp_path):
    torch.save(wrap(net), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as other:
        for name in archive.namelist():
            other.writestr(name, bytes(2**27) if name.endswith("data/0") else archive.read(name))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="its parts are compressed, as torch never does, and may take any memory"):
        read_state(tmp_path / "bomb.pt")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 2**26
