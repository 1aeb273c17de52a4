"""`export --quantize int8`, and `evaluate` of exported files."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.exported import onnx
from tests.commands.test_bad_input import refused

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
WITH_ONNX = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are optional")
OF_OTHERS = pytest.mark.filterwarnings("ignore")  # libraries are not pinned
MEAN, STD = [0.1307], [0.3081]  # of the digits


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small net whose head is solved on the digits, so that it knows them."""
    from compresskit.data.mini import MnistMini

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    x, y = next(MnistMini().load(0).train.batches(3000, torch.device("cpu")))
    with torch.no_grad():
        seen = net[:4](x).double()
        gram = seen.T @ seen + 10 * torch.eye(512)
        net[4].weight.copy_(8 * torch.linalg.solve(gram, seen.T @ nn.functional.one_hot(y, 10).double()).T)
    told = {"mean": MEAN, "std": STD, "bytes": [True]}
    network = trace(net, (1, 28, 28)).eval()
    save(Checkpoint(network, {"kind": "net"}, (1, 28, 28), "classification", told, []), tmp_path / "model.pt")
    (tmp_path / "digits.yaml").write_text("data: {kind: mnist-mini}\nreport: {latency_repeats: 2, latency_batch: 3}\n")
    return tmp_path / "model.pt"


def shown(call, *arguments: object) -> dict:
    outcome = call(*arguments, "--json")
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def values(found: dict) -> dict[str, float]:
    return {figure["name"]: figure["after"][0] for figure in found["figures"]}


@pytest.mark.parametrize("options", [[], ["--with-preprocessing", "--probabilities", "--fold-norms"]])
def test_a_program_is_evaluated_as_its_checkpoint(call, model, options):
    shown(call, "export", model, "--out", "net.pt2", *options)
    of_file = shown(call, "evaluate", "digits.yaml", "-c", "net.pt2")
    found, expected = values(of_file), values(shown(call, "evaluate", "digits.yaml", "-c", model))
    assert found["test accuracy"] == pytest.approx(expected["test accuracy"], abs=1e-3)
    assert found["test accuracy"] > 0.8
    assert found["test loss"] == pytest.approx(expected["test loss"], rel=1e-3)
    assert found["file"] == Path("net.pt2").stat().st_size
    assert found["latency, batch 3, cpu"] > 0
    assert of_file["notes"][-2:] == (["inside: normalisation", "inside: softmax"] if options else of_file["notes"][-2:])


@WITH_ONNX
@OF_OTHERS
@pytest.mark.parametrize("inside", [False, True])
def test_int8(call, model, inside):
    options = ["--with-preprocessing", "--probabilities"] if inside else []
    given = ["--quantize", "int8", "--recipe", "digits.yaml", *options]
    found = shown(call, "export", model, "data.limit=300", "--out", "net.onnx", *given)
    (table,) = (table for table in found["tables"] if table["title"].startswith("float32 and int8"))
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert list(rows) == ["PyTorch", "ONNX", "ONNX int8"]
    assert rows["PyTorch"]["bytes"] == model.stat().st_size
    assert rows["ONNX"]["test accuracy"] == pytest.approx(rows["PyTorch"]["test accuracy"], abs=1e-3)
    assert rows["ONNX"]["test loss"] == pytest.approx(rows["PyTorch"]["test loss"], rel=1e-3)
    assert rows["ONNX int8"]["test accuracy"] == pytest.approx(rows["PyTorch"]["test accuracy"], abs=0.01)
    assert rows["ONNX int8"]["test loss"] == pytest.approx(rows["PyTorch"]["test loss"], rel=0.05)
    assert found["checks"]["int8 against float32, on test samples"] < 1
    assert "calibrated on 300 training samples, without augmentation" in found["notes"]
    assert rows["ONNX int8"]["bytes"] == Path("net.onnx").stat().st_size < 0.7 * rows["ONNX"]["bytes"]
    assert found["checks"]["float32 .onnx read back"] < 1e-4
    assert found["details"]["quantize"] == "int8"
    again = values(shown(call, "evaluate", "digits.yaml", "-c", "net.onnx"))
    assert again["test accuracy"] == rows["ONNX int8"]["test accuracy"]
    assert shown(call, "inspect", "net.onnx")["details"]["told"]["quantized"] == "int8"
    check_weights(Path("net.onnx"), load(model).network)
    check_sharp(Path("net.onnx"), inside)
    assert sorted(path.name for path in Path().iterdir()) == ["digits.yaml", "model.pt", "net.onnx", "net.onnx.png"]
    assert Path("net.onnx.png").read_bytes().startswith(b"\x89PNG")
    if not inside:
        again = [*given, "report.plots=false", "--force", "-q"]
        Path("net.onnx.png").write_text("of before")
        assert call("export", model, "data.limit=300", "--out", "net.onnx", *again).status == 0
        assert Path("net.onnx.png").read_text() == "of before"


def check_weights(path: Path, network: nn.Module) -> None:
    """Each output channel of the folded convolution has its own scale, its largest weight over 127, and none is cut."""
    import onnx

    held = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    (whole,) = (array for array in held.values() if array.dtype == np.int8 and array.ndim == 4)
    scales = {name: array for name, array in held.items() if array.shape == (8,) and name.endswith("_scale")}
    (scale,) = (array for name, array in scales.items() if "bias" not in name)
    conv, norm = network.get_submodule("0"), network.get_submodule("1")
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = (conv.weight * factor.view(-1, 1, 1, 1)).detach().numpy()
    np.testing.assert_allclose(scale, np.abs(weight).reshape(8, -1).max(1) / 127, rtol=1e-4)
    np.testing.assert_allclose(whole * scale.reshape(-1, 1, 1, 1), weight, atol=0.51 * float(scale.max()))


def check_sharp(path: Path, inside: bool) -> None:
    """What the file returns comes out of a softmax in float32, where it returns probabilities."""
    import onnx

    graph = onnx.load(path).graph
    (last,) = (node for node in graph.node if graph.output[0].name in node.output)
    assert (last.op_type == "Softmax") == inside


@WITH_ONNX
@OF_OTHERS
def test_a_metric_that_fails_leaves_the_file_that_was_there(call, model, tmp_path):
    (tmp_path / "my_metric.py").write_text("def wrong(outputs, targets):\n    raise ValueError('no idea')\n")
    Path("net.onnx").write_text("before")
    given = ["--quantize", "int8", "--recipe", "digits.yaml", "report.metrics=['my_metric:wrong']", "--force"]
    refused(call("export", model, "--out", "net.onnx", *given), 2, "report.metrics: wrong raised", "no idea")
    assert Path("net.onnx").read_text() == "before"


def test_what_is_refused(call, model, monkeypatch, tmp_path):
    quantize = ["--quantize", "int8"]
    refused(call("export", model, "--out", "n.pt2", *quantize, "--recipe", "digits.yaml"), 2, "it is for .onnx files")
    refused(call("export", model, "--out", "n.onnx", *quantize), 2, "give their recipe with --recipe")
    refused(call("export", model, "--out", "n.onnx", "--quantize", "int4"), 2, "'int4' was given; allowed: int8")
    refused(call("export", model, "--out", "n.pt2", "--recipe", "digits.yaml"), 2, "add --quantize int8")
    refused(call("export", model, "data.limit=3", "--out", "n.pt2"), 2, "add --quantize int8")
    refused(call("evaluate", "digits.yaml", "-c", "net.py"), 2, "net.py: it holds code")
    refused(call("evaluate", "digits.yaml", "-c", "none.pt2"), 1, "none.pt2: no such file")
    Path("n.onnx.png").touch()
    there = call("export", model, "--out", "n.onnx", *quantize, "--recipe", "digits.yaml")
    refused(there, 1, "n.onnx.png: it exists already")
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    given = [*quantize, "--recipe", "digits.yaml"]
    refused(call("export", model, "--out", "n.onnx", *given), 2, "install compresskit[onnx]")
    Path("net.onnx").write_bytes(b"")
    refused(call("evaluate", "digits.yaml", "-c", "net.onnx"), 2, "net.onnx: an .onnx file needs", "compresskit[onnx]")


def test_a_file_for_other_data_is_refused(call, model):
    shown(call, "export", model, "--out", "net.pt2")
    refused(call("evaluate", "digits.yaml", "data.normalize=none", "-c", "net.pt2"), 1, "made for inputs of mean")
    checkpoint = load(model)
    checkpoint.task = "regression"
    save(checkpoint, model)
    shown(call, "export", model, "--out", "net.pt2", "--force")
    refused(call("evaluate", "digits.yaml", "-c", "net.pt2"), 1, "made for regression of inputs [(1, 28, 28)]")
