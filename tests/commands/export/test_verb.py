"""`compresskit export`: files that do what the checkpoint does, and what is refused."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compresskit.commands.export import network as steps
from compresskit.commands.export import verb as export
from compresskit.commands.export.options import Options
from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, load, save
from compresskit.storage.exported import onnx
from compresskit.storage.reading import file_hash
from tests.commands.conftest import program
from tests.commands.test_bad_input import refused
from tests.sparse import block_mask, scattered

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
NEEDS_ONNX = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are optional")


def checkpoint(degree: int = 4) -> Checkpoint:
    """Two sparse layers, one convolution among them, and a dense head with a mask of single weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.Tanh(),
        nn.Linear(32, 3),
    )  # fmt: skip
    masks = {
        "2.weight": scattered(block_mask(16, 16, degree), 1)[:, :, None, None].expand(16, 16, 3, 3).clone(),
        "5.weight": block_mask(32, 64, 8),
        "7.weight": torch.rand(3, 32) > 0.5,
    }
    network = trace(net)
    apply_masks(network, masks)
    preprocessing = {"mean": [0.5, 0.25], "std": [1.0, 2.0]}
    return Checkpoint(network.eval(), {"kind": "mlp"}, (2, 6, 6), "classification", preprocessing, [], masks)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(checkpoint(), tmp_path / "run" / "model.pt")
    return tmp_path / "run" / "model.pt"


def batch(size: int = 5) -> torch.Tensor:
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(1))


# Runs in a fresh process, without compresskit: the outputs of an exported file for batches of several sizes.
_ALONE = """
import sys, torch
sys.modules["compresskit"] = None
network = torch.export.load(sys.argv[1]).module()
inputs, outputs = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    assert (network(inputs) - outputs).abs().max() < 1e-6
    assert (network(inputs[:1]) - outputs[:1]).abs().max() < 1e-6
"""


@pytest.mark.parametrize("layout", ["masked", "grouped"])
def test_a_program_that_torch_alone_loads(call, model, layout, tmp_path):
    outcome = call("export", model.parent, "--out", "made/net.pt2", "--layout", layout, "--json")
    assert outcome.status == 0, outcome.err
    checks = json.loads(outcome.out)["checks"]
    assert checks["net.pt2 read back"] < 1e-6
    torch.save((batch(), load(model).network(batch()).detach()), tmp_path / "batch.pt")
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, "made/net.pt2", "batch.pt"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path("made").iterdir()) == ["net.pt2"]


def test_a_checkpoint_in_grouped_layout(call, model):
    outcome = call("export", model, "--out", "grouped.pt", "--layout", "grouped", "--json")
    assert outcome.status == 0, outcome.err
    report, made, original = json.loads(outcome.out), load(Path("grouped.pt")), load(model)
    torch.testing.assert_close(made.network(batch()), original.network(batch()), rtol=1e-5, atol=1e-6)
    assert [type(made.network.get_submodule(name)).__name__ for name in ("2", "5")] == ["Conv2d", "GroupedLinear"]
    assert list(made.masks) == ["7.weight"]
    (entry,) = made.history
    assert (entry["verb"], entry["recipe"], entry["parent"]) == ("export", {"layout": "grouped"}, file_hash(model))
    assert report["tables"][0]["rows"] == [["2", 1, "16×16×3×3", 4, "4×4"], ["5", 1, "32×64", 8, "4×8"]]
    assert report["skipped"] == {"7": "outputs share some of their inputs, but not all"}
    assert report["checks"]["grouped.pt read back"] == 0
    assert 0 < report["checks"]["grouped layout against the masked one"] < 1e-5
    figures = {figure["name"]: (*figure["before"], *figure["after"]) for figure in report["figures"]}
    conv, fc, rest = 16 * 16 * 9, 32 * 64, 16 * 2 * 9 + 16 + 16 + 32 + 32 * 3 + 3
    gone = int((~original.masks["7.weight"]).sum())
    assert figures["parameters"] == (conv + fc + rest, conv // 4 + fc // 8 + rest)
    assert figures["parameters not masked"] == (conv // 4 + fc // 8 + rest - gone,) * 2
    macs = 16 * 2 * 9 * 16
    assert figures["MACs"] == (macs + conv * 4 + fc + 96, macs + conv + fc // 8 + 96)
    assert figures["file"] == (model.stat().st_size, Path("grouped.pt").stat().st_size)
    outcome = call("inspect", "grouped.pt")
    assert outcome.status == 0, outcome.err
    assert "GroupedLinear" in outcome.out


def test_the_installed_program_says_what_it_did(model, tmp_path):
    outcome = program("export", "run", "-o", "net.pt", "--layout", "grouped", cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    for words in ("grouped layers", "left alone", "read back: largest difference 0.0e+00", "written to net.pt"):
        assert words in outcome.out
    assert "inputs are normalised: mean 0.5 0.25, std 1 2" in outcome.out
    assert outcome.err == ""


def test_a_masked_checkpoint_is_written_as_it_is(call, model):
    assert call("export", model, "--out", "copy.pt", "-q").status == 0
    made, original = load(Path("copy.pt")), load(model)
    assert all(torch.equal(mask, original.masks[name]) for name, mask in made.masks.items())
    assert torch.equal(made.network(batch()), original.network(batch()))
    assert [entry["recipe"] for entry in made.history] == [{"layout": "masked"}]


def test_a_difference_is_reported(call, model, monkeypatch):
    """Of a grouping that went wrong."""

    def wrong(original, masks):
        found = right(original, masks)
        found.network.get_parameter("7.bias").data += 0.5
        return found

    right = steps.group
    monkeypatch.setattr(steps, "group", wrong)
    outcome = call("export", model, "--out", "net.pt", "--layout", "grouped", "--json")
    assert json.loads(outcome.out)["checks"]["grouped layout against the masked one"] == pytest.approx(0.5, abs=1e-5)


def test_nothing_is_overwritten_without_force(call, model):
    Path("net.pt").write_text("mine")
    refused(call("export", model, "--out", "net.pt"), 1, "net.pt: it exists already", "--force")
    assert Path("net.pt").read_text() == "mine"
    before = file_hash(model)
    refused(call("export", model.parent, "--out", model, "--force"), 1, "it is the input")
    assert file_hash(model) == before
    Path("folder.pt").mkdir()
    refused(call("export", model, "--out", "folder.pt", "--force"), 1, "it exists already")
    assert call("export", model, "--out", "net.pt", "--force").status == 0
    assert load(Path("net.pt")).history


def test_wrong_arguments(call, model, tmp_path):
    refused(call("export", model, "--out", "net.bin"), 2, "net.bin ends with .bin; allowed: .pt, .pt2, .onnx, .py")
    refused(call("export", model, "--out", "net"), 2, "net ends with no suffix")
    refused(call("export", model, "--out", "net.pt", "--layout", "sparse"), 2, "'sparse' was given; allowed: masked, g")
    refused(call("export", tmp_path, "--out", "net.pt"), 1, "no model.pt in this folder")
    refused(call("export", "none.pt", "--out", "net.pt"), 1, "none.pt: no such file")
    outcome = call("export", model)
    assert outcome.status == 2
    assert "Missing option '--out'" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_nothing_to_group(call, model):
    original = load(model)
    original.masks = {"7.weight": original.masks["7.weight"]}
    save(original, Path("single.pt"))
    outcome = call("export", "single.pt", "--out", "net.pt", "--layout", "grouped")
    refused(outcome, 1, "nothing could be grouped (7: outputs share some of their inputs, but not all)")
    original.masks = {}
    save(original, Path("dense.pt"))
    outcome = call("export", "dense.pt", "--out", "net.pt", "--layout", "grouped")
    refused(outcome, 1, "nothing could be grouped (it has no masks)")
    assert not Path("net.pt").exists()


def test_a_network_without_masks_has_no_figures_of_them(call, model):
    original = load(model)
    original.masks = {}
    save(original, Path("dense.pt"))
    outcome = call("export", "dense.pt", "--out", "net.pt2", "--json")
    names = [figure["name"] for figure in json.loads(outcome.out)["figures"]]
    assert names == ["parameters", "MACs", "file"]


def test_onnx_says_what_to_install(call, model, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    outcome = call("export", model, "--out", "net.onnx")
    refused(outcome, 2, "needs onnxscript, not installed here; install compresskit[onnx]")


@NEEDS_ONNX
@pytest.mark.filterwarnings("ignore")  # of libraries that are not pinned
@pytest.mark.parametrize("layout", ["masked", "grouped"])
def test_onnx(call, model, layout):
    outcome = call("export", model, "--out", "net.onnx", "--layout", layout, "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["checks"]["net.onnx read back"] < 1e-5
    assert sorted(path.name for path in Path().iterdir()) == ["net.onnx", "run"]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(7, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.table(x))).mean(1))


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_networks_of_tokens_are_compared_on_tokens(tmp_path, suffix):
    network = trace(Words()).eval()
    save(Checkpoint(network, {"kind": "words"}, (5,), "classification", {}, []), tmp_path / "model.pt")
    result = export.run(Options(tmp_path / "model.pt", tmp_path / f"out{suffix}"), None)
    assert result.checks[f"out{suffix} read back"] < 1e-6


class Two(nn.Module):
    """Of an image and of tokens; the third input is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(1, 6, 3), nn.Embedding(7, 6), nn.Linear(12, 3)

    def forward(self, image, words, unused):
        seen = self.conv(image).relu().mean((2, 3))
        return self.head(torch.cat([seen, self.table(words).mean(1)], 1))


# Runs in a fresh process, without compresskit: each input is an argument, tokens are int64.
_ALONE_OF_TWO = """
import sys, torch
sys.modules["compresskit"] = None
program = torch.export.load(sys.argv[1])
assert list(program.graph_signature.user_inputs) == ["input_1", "input_2", "input_3"]
assert "conv.weight" in program.state_dict
network = program.module()
inputs, outputs = torch.load(sys.argv[2], weights_only=True)
for count in (1, 5):
    with torch.no_grad():
        found = network(*(one[:count] for one in inputs))
    assert (found - outputs[:count]).abs().max() < 1e-6
"""


@pytest.fixture
def of_two(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    shape = ((1, 6, 6), (4,), (2,))
    preprocessing = {"mean": [0.5, 0.0, 0.0], "std": [0.25, 1.0, 2.0]}
    network = trace(Two(), shape).eval()
    save(Checkpoint(network, {"kind": "two"}, shape, "classification", preprocessing, []), tmp_path / "two.pt")
    return tmp_path / "two.pt"


def batch_of_two(size: int = 5) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    words = torch.randint(7, (size, 4), generator=random)
    return torch.randn(size, 1, 6, 6, generator=random), words, torch.randn(size, 2, generator=random)


def test_several_inputs_are_arguments_of_a_program(call, of_two, tmp_path):
    outcome = call("export", of_two, "--out", "net.pt2", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["checks"]["net.pt2 read back"] < 1e-6
    assert report["notes"][:3] == [
        "takes input_1 float32 (N, 1, 6, 6), input_2 int64 (N, 4), input_3 float32 (N, 2)",
        "input 1 is normalised: mean 0.5, std 0.25",
        "input 3 is normalised: mean 0 0, std 1 2",
    ]
    inputs = batch_of_two()
    torch.save((inputs, load(of_two).network(inputs).detach()), tmp_path / "batch.pt")
    done = subprocess.run(
        [sys.executable, "-c", _ALONE_OF_TWO, "net.pt2", "batch.pt"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@NEEDS_ONNX
@pytest.mark.filterwarnings("ignore")  # of libraries that are not pinned
def test_weights_that_an_onnx_file_cannot_hold_lie_beside_it(call, model, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    outcome = call("export", model, "--out", "made/net.onnx", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["checks"]["net.onnx read back"] < 1e-5
    files = sorted(Path("made").iterdir())
    assert [path.name for path in files] == ["net.onnx", "net.onnx.data"]
    (size,) = [figure["after"] for figure in report["figures"] if figure["name"] == "file"]
    assert size == [sum(path.stat().st_size for path in files)]
    Path("made").rename("moved")
    inputs = batch()
    torch.testing.assert_close(onnx.read_onnx(Path("moved/net.onnx"))(inputs), load(model).network(inputs).detach())
    refused(call("export", model, "--out", "moved/net.onnx"), 1, "net.onnx: it exists already")
    Path("moved/net.onnx").unlink()
    refused(call("export", model, "--out", "moved/net.onnx"), 1, "net.onnx.data: it exists already")
    monkeypatch.setattr(onnx, "LARGEST", 2**30)
    assert call("export", model, "--out", "moved/net.onnx", "--force").status == 0
    assert [path.name for path in Path("moved").iterdir()] == ["net.onnx"]


@NEEDS_ONNX
@pytest.mark.filterwarnings("ignore")  # of libraries that are not pinned
def test_several_inputs_have_names_in_onnx(call, of_two):
    from onnxruntime import InferenceSession

    outcome = call("export", of_two, "--out", "net.onnx", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["checks"]["net.onnx read back"] < 1e-5
    runtime, network = InferenceSession("net.onnx"), load(of_two).network
    names = [value.name for value in runtime.get_inputs()]
    assert names == ["input_1", "input_2", "input_3"]
    for size in (1, 3):
        inputs = batch_of_two(size)
        (found,) = runtime.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(found), network(inputs).detach(), atol=1e-5, rtol=0)


def test_tokens_of_a_program_are_whole_numbers_unless_they_are_read_as_numbers_too(tmp_path):
    class Both(Words):
        def forward(self, x):
            return self.head(torch.relu(self.hidden(self.table(x.long()))).mean(1)) + nn.functional.softmax(x, 1)[:, :3]

    for kind, taken in ((Words, ["takes int64 (N, 5)"]), (Both, [])):
        network = trace(kind()).eval()
        save(Checkpoint(network, {"kind": "words"}, (5,), "classification", {}, []), tmp_path / "model.pt")
        result = export.run(Options(tmp_path / "model.pt", tmp_path / "out.pt2", force=True), None)
        assert result.checks["out.pt2 read back"] < 1e-6
        assert result.notes[:-1] == taken


def test_norms_are_folded_and_those_that_stay_are_told(call, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(128, 3)
    )
    for norm in (net[1], net[3]):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
    network = trace(net, (2, 6, 6)).eval()
    save(Checkpoint(network, {"kind": "net"}, (2, 6, 6), "classification", {}, []), tmp_path / "model.pt")
    outcome = call("export", "model.pt", "--out", "folded.pt", "--fold-norms", "--json")
    assert outcome.status == 0, outcome.err
    report, made = json.loads(outcome.out), load(Path("folded.pt"))
    torch.testing.assert_close(made.network(batch()), network(batch()), rtol=1e-5, atol=1e-6)
    assert report["tables"][0]["rows"] == [["1", "0"]]
    assert report["skipped"] == {
        "3": "ReLU before it is no convolution or linear layer; Tanh behind it is no convolution or linear layer"
    }
    assert "batch norms: 1 folded, 1 left" in report["notes"]
    assert 0 < report["checks"]["norms folded"] < 1e-5
    assert report["checks"]["folded.pt read back"] == 0
    figures = {figure["name"]: (*figure["before"], *figure["after"]) for figure in report["figures"]}
    assert figures["parameters"] == (144 + 8 + 16 + 16 + 387, 144 + 8 + 16 + 387)
    assert min(figures["latency, batch 8, cpu"]) > 0
    assert made.history[-1]["recipe"] == {"layout": "masked", "fold_norms": True}


# Runs in a fresh process: the class of a written file, without compresskit and without safetensors.
_ALONE_AS_SOURCE = """
import sys, torch
sys.modules["compresskit"] = sys.modules["safetensors"] = None
from net import Net
inputs, outputs = torch.load(sys.argv[1], weights_only=True)
with torch.no_grad():
    assert torch.equal(Net.from_file()(inputs), outputs)
"""


def test_source_that_torch_alone_runs(call, model, tmp_path):
    outcome = call("export", model.parent, "--out", "net.py", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["checks"] == {"net.py read back": 0}
    figures = {figure["name"]: figure["after"] for figure in report["figures"]}
    assert figures["file"] == [Path("net.py").stat().st_size + Path("net.safetensors").stat().st_size]
    torch.save((batch(), load(model).network(batch()).detach()), tmp_path / "batch.pt")
    done = subprocess.run([sys.executable, "-c", _ALONE_AS_SOURCE, "batch.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = Path("net.py").read_text()
    assert '"""Takes float32 (N, 2, 6, 6)."""' in text
    Path("net.py").unlink()
    refused(call("export", model, "--out", "net.py"), 1, "net.safetensors: it exists already", "--force")


@pytest.fixture
def expanded(tmp_path: Path) -> Path:
    """An expanded convolution with a batch norm behind it."""
    torch.manual_seed(0)
    branches = [((8, (1, 1)), (8, (3, 3)), (6, (1, 1)))]
    layer = Expanded("Conv2d", 2, 6, branches, True, (3, 3), (1, 1), (1, 1), (1, 1), mode="sequential")
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_mean)
    network = trace(nn.Sequential(layer, norm, nn.ReLU()), (2, 6, 6)).eval()
    save(Checkpoint(network, {"kind": "net"}, (2, 6, 6), "regression", {}, []), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("suffix", [".py", ".pt2", ".safetensors", ".pth", pytest.param(".onnx", marks=NEEDS_ONNX)])
def test_expanded_layers_are_multiplied_back(call, expanded, suffix):
    outcome = call("export", expanded, "--out", f"net{suffix}", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert 0 < report["checks"]["expanded layers multiplied back"] < 1e-5
    assert report["checks"][f"net{suffix} read back"] < 1e-5
    assert report["figures"][0]["after"] == [2 * 6 * 9 + 6 + 12]


def test_an_expanded_checkpoint_stays_one(call, expanded):
    assert call("export", expanded, "--out", "other.pt").status == 0
    assert any(isinstance(layer, Expanded) for layer in load(Path("other.pt")).network.modules())


def test_norms_behind_expanded_layers_are_folded(call, expanded):
    outcome = call("export", expanded, "--out", "net.py", "--fold-norms", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["skipped"] == {}
    assert 0 < report["checks"]["norms folded"] < 1e-5
    assert "BatchNorm" not in Path("net.py").read_text()
