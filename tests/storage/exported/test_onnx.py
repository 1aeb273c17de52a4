"""Networks that ONNX or onnxruntime makes trouble with: they are written all the same, or refused in one line."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compresskit.commands.export.inputs import outputs_told
from compresskit.errors import UnsupportedModelError
from compresskit.graph.trace import trace
from compresskit.storage.exported.onnx import write_onnx
from compresskit.storage.exported.program import write_program

pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
        reason="onnx, onnxscript and onnxruntime are optional",
    ),
    pytest.mark.filterwarnings("ignore"),  # of libraries that are not pinned
]


class Attention(nn.Module):
    """With a mask that is computed, as of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 3)
        self.mask = nn.Linear(1, 4)
        self.register_buffer("places", torch.arange(81.0).view(9, 9, 1) / 81)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.mask(self.places).permute(2, 0, 1)[None]
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(x.transpose(1, 2).reshape(n, tokens, width)).mean(1)


class Given(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.out, self.call = nn.Linear(4, 4), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.out(x))


@pytest.mark.parametrize("size", [1, 5])
def test_attention_with_a_mask(size, tmp_path):
    torch.manual_seed(0)
    net = Attention().eval()
    read = write_onnx(trace(net, (9, 16)), torch.randn(8, 9, 16), tmp_path / "net.onnx")
    inputs = torch.randn(size, 9, 16)
    with torch.no_grad():
        torch.testing.assert_close(read(inputs), net(inputs), rtol=1e-5, atol=1e-6)


def test_what_onnxruntime_does_not_run_leaves_the_file_that_was_there(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"before")
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()).double()
    with pytest.raises(UnsupportedModelError, match=r"net\.onnx: onnxruntime cannot run .*implementation.*; write"):
        write_onnx(trace(net, (2, 6, 6)).eval(), torch.randn(8, 2, 6, 6).double(), tmp_path / "net.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.onnx", b"before")]


@pytest.mark.parametrize(
    ("write", "call", "message"),
    [
        (write_onnx, lambda x: torch.median(x, 1)[0], "as ONNX (No ONNX function found for "),
        (write_program, lambda x: x.view(4, -1, 4).flatten(0, 1), "as a program ("),
        (write_onnx, lambda x: torch.cat(x.chunk(2)), "as ONNX (forward makes a difference between batch sizes"),
        (write_program, lambda x: torch.cat(x.chunk(2)), "as a program (forward makes a difference between batch"),
    ],
)
def test_what_torch_does_not_convert(write, call, message, tmp_path):
    with pytest.raises(UnsupportedModelError) as told:
        write(trace(Given(call)).eval(), torch.randn(8, 4), tmp_path / "net.x")
    assert f"net.x: torch cannot write this network {message}" in str(told.value)
    assert str(told.value).endswith("write .py instead")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


class Several(nn.Module):
    """Of which one is returned twice, one as it came, and one is none of floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.other = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> object:
        out = self.out(x)
        return {"second": out, "first": [self.other(x), (out, x)], 3: out.argmax(1)}


def test_outputs_of_any_structure_come_back_so(tmp_path):
    torch.manual_seed(0)
    net, inputs = Several().eval(), torch.randn(5, 4)
    network = trace(net, (4,), whole=True).eval()
    told = {"probabilities": False, **outputs_told(network, torch.randn(8, 4))}
    found, expected = write_onnx(network, torch.randn(8, 4), tmp_path / "net.onnx", told)(inputs), net(inputs)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert outputs_told(net.out, inputs) == {}
    del told["probabilities"]  # a file of others, whose words may mean something else
    assert isinstance(write_onnx(network, torch.randn(8, 4), tmp_path / "net.onnx", told)(inputs), list)
