"""What travels with an exported file: normalisation, classes, sizes; and what of it is inside of the network."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, load, save
from tests.commands.conftest import report
from tests.commands.test_bad_input import refused

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
WITHOUT = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are optional")
SUFFIXES = [".pt2", ".py", pytest.param(".onnx", marks=WITHOUT)]
MEAN, STD = [0.25, 0.5], [0.5, 0.125]
CLASSES = ["cat", 'do"g', "x; import os"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of images of bytes, with names of classes."""
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (2, 6, 6)).eval()
    told = {"mean": MEAN, "std": STD, "bytes": [True], "classes": CLASSES}
    save(Checkpoint(network, {"kind": "net"}, (2, 6, 6), "classification", told, []), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def run(path: Path, batch: torch.Tensor) -> torch.Tensor:
    """The outputs of an exported file, by what other programs use."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(batch).detach()
    if path.suffix == ".py":
        found: dict[str, Any] = {"__name__": "net", "__file__": str(path)}
        exec(compile(path.read_text(), str(path), "exec"), found)
        return found["Net"].from_file()(batch).detach()
    from onnxruntime import InferenceSession

    runtime = InferenceSession(path)
    (place,) = runtime.get_inputs()
    return torch.from_numpy(runtime.run(None, {place.name: batch.numpy()})[0])


@pytest.mark.filterwarnings("ignore")  # of libraries that are not pinned
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_tells_how_to_use_it(call, model, suffix):
    out = f"net{suffix}"
    assert call("export", model, "--out", out, "-q").status == 0
    outcome = call("inspect", out, "--json")
    assert outcome.status == 0, outcome.err
    told = json.loads(outcome.out)["details"]["told"]
    assert told == {
        "task": "classification",
        "inputs": [{"type": "float32", "shape": ["N", 2, 6, 6]}],
        "mean": MEAN,
        "std": STD,
        "scale": 1 / 255,
        "classes": CLASSES,
        "normalised_inside": False,
        "probabilities": False,
    }
    assert "x; import os" in call("inspect", out).out


@pytest.mark.filterwarnings("ignore")  # of libraries that are not pinned
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_as_they_are_stored_to_probabilities(call, model, suffix):
    out = f"net{suffix}"
    outcome = call("export", model, "--out", out, "--with-preprocessing", "--probabilities", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["checks"]["inputs normalised inside"] < 1e-5
    assert found["checks"][f"{out} read back"] < 1e-6
    notes = ["inside: (x / 255 - mean) / std", "inside: softmax, it returns probabilities", "takes uint8 (N, 2, 6, 6)"]
    assert found["notes"][:3] == notes
    told = json.loads(call("inspect", out, "--json").out)["details"]["told"]
    assert (told["normalised_inside"], told["probabilities"]) == (True, True)
    assert told["inputs"] == [{"type": "uint8", "shape": ["N", 2, 6, 6]}]
    images = torch.randint(256, (5, 2, 6, 6), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in (MEAN, STD))
    expected = load(model).network((images / 255 - mean) / std).softmax(1).detach()
    torch.testing.assert_close(run(Path(out), images), expected, rtol=1e-4, atol=1e-5)


def changed(model: Path, **changes: Any) -> None:
    checkpoint = load(model)
    for name, value in changes.items():
        setattr(checkpoint, name, value)
    save(checkpoint, model)


def test_files_without_the_new_keys_go_on_to_work(call, model):
    changed(model, preprocessing={"mean": MEAN, "std": STD})
    assert call("export", model, "--out", "net.pt2", "-q").status == 0
    told = json.loads(call("inspect", "net.pt2", "--json").out)["details"]["told"]
    assert "scale" not in told
    assert "classes" not in told
    outcome = call("export", model, "--out", "inside.pt2", "--with-preprocessing", "--json")
    assert "does not tell that its data are bytes" in json.loads(outcome.out)["notes"][0]


def test_inputs_that_are_no_bytes_are_normalised_inside_too(call, model):
    changed(model, preprocessing={"mean": MEAN, "std": STD, "bytes": [False]})
    outcome = call("export", model, "--out", "net.pt2", "--with-preprocessing", "--json")
    assert json.loads(outcome.out)["notes"][0] == "inside: (x - mean) / std"
    batch = torch.randn(3, 2, 6, 6)
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(run(Path("net.pt2"), batch), load(model).network((batch - mean) / std).detach())


def test_what_cannot_be_inside(call, model):
    refused(call("export", model, "--out", "n.pt", "--with-preprocessing"), 2, "--with-preprocessing: verbs do that to")
    refused(call("export", model, "--out", "n.pt", "--probabilities"), 2, "--probabilities: verbs do that to")
    changed(model, preprocessing={})
    refused(call("export", model, "--out", "n.py", "--with-preprocessing"), 2, "one input whose normalisation")
    changed(model, task="regression")
    refused(call("export", model, "--out", "n.py", "--probabilities"), 2, "this network is for regression")
    assert not Path("n.py").exists()


def test_inspect_of_damaged_and_foreign_files(call, tmp_path):
    Path("net.pt2").write_bytes(b"PK damaged")
    refused(call("inspect", "net.pt2"), 1, "net.pt2: it cannot be read")
    refused(call("inspect", "none.py"), 1, "none.py: no such file")
    Path("net.py").write_text("import os\nos.abort()\nMEAN = [1.0]\n")  # of somebody else
    outcome = call("inspect", "net.py", "--json")
    assert json.loads(outcome.out)["details"]["told"] == {}


def test_a_run_stores_names_and_bytes(trained):
    found = load(trained / "runs/net-train/model.pt").preprocessing
    assert found["bytes"] == [True]
    assert report(trained / "runs/net-train")["verb"] == "train"
