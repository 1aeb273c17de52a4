"""`evaluate`, and `inspect`, of exported files as anybody may have made them."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compresskit.graph.trace import trace
from compresskit.storage.exported.onnx import tell, write_onnx
from compresskit.storage.exported.program import write_program
from tests.commands.test_bad_input import refused

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
MEAN, STD = 0.1307, 0.3081  # of the digits
TOLD: dict[str, Any] = {
    "task": "classification",
    "inputs": [{"type": "float32", "shape": ["N", 1, 28, 28]}],
    "mean": [MEAN],
    "std": [STD],
    "normalised_inside": False,
    "probabilities": False,
}


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("data: {kind: mnist-mini}\nreport: {latency_repeats: 2}\n")


def program(told: dict[str, Any] | None, *, channels: int = 1, outputs: int = 10) -> None:
    """Writes net.pt2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * 784, outputs))
    write_program(trace(net, (channels, 28, 28)), torch.randn(2, channels, 28, 28), Path("net.pt2"), told)


def accuracy(outcome) -> float:
    assert outcome.status == 0, outcome.err
    (found,) = [one for one in json.loads(outcome.out)["figures"] if one["name"] == "test accuracy"]
    return found["after"][0]


def test_what_a_file_tells_wrongly_is_refused(call):
    program(TOLD | {"std": [0.0]})
    words = ["net.pt2: what it tells of itself is damaged", "std.0", "greater than 0, found 0.0", "export it again"]
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, *words)
    refused(call("inspect", "net.pt2"), 1, *words)
    program(TOLD | {"mean": [MEAN] * 3, "std": [STD] * 3})
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, "made for inputs of mean [0.1307, 0.1307, 0.1307]")


def test_files_of_others_are_evaluated(call):
    program(TOLD)
    ours = accuracy(call("evaluate", "digits.yaml", "-c", "net.pt2", "--json"))
    for told in (None, {"task": "detect", "mean": "0.5"}):
        program(told)
        assert accuracy(call("evaluate", "digits.yaml", "-c", "net.pt2", "--json")) == ours
        assert "it tells nothing of itself" in call("inspect", "net.pt2").out


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are optional")
@pytest.mark.filterwarnings("ignore")  # of libraries that are not pinned
def test_onnx_files_of_others_are_evaluated(call):
    net = trace(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 28, 28))
    write_onnx(net, torch.randn(2, 1, 28, 28), Path("net.onnx"), TOLD)
    ours = accuracy(call("evaluate", "digits.yaml", "-c", "net.onnx", "--json"))
    tell(Path("net.onnx"), {"task": "detect", "names": {}})
    assert accuracy(call("evaluate", "digits.yaml", "-c", "net.onnx", "--json")) == ours
    tell(Path("net.onnx"), TOLD | {"inputs": None})
    refused(call("evaluate", "digits.yaml", "-c", "net.onnx"), 1, "net.onnx: what it tells", "inputs: Input should be")
    write_onnx(
        trace(nn.Sequential(nn.Flatten(), nn.Linear(2352, 10)), (3, 28, 28)),
        torch.randn(2, 3, 28, 28), Path("net.onnx"),
    )  # fmt: skip
    refused(call("evaluate", "digits.yaml", "-c", "net.onnx"), 1, "net.onnx: it does not run on a batch")


def test_a_network_for_other_data_is_refused(call):
    program(None, channels=3)
    words = ["net.pt2: it does not run on a batch of the recipe's data, torch.float32 (256, 1, 28, 28) ("]
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, *words, "use the data that it was made for")
    program(None, outputs=1000)  # whose scores of ten classes are no scores of digits
    words = ["net.pt2: it gives (256, 1000) for 256 samples, and the recipe's data have 10 outputs each"]
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, *words)


def test_scores_are_no_probabilities(call):
    program(TOLD | {"probabilities": True})
    words = "net.pt2: it tells that it gives probabilities, and gives other numbers; export it again"
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, words)


def test_a_pipe_is_not_waited_for(call, tmp_path):
    os.mkfifo(tmp_path / "net.pt2")
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, "net.pt2: it is no file but a pipe or a device")
