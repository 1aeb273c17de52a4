"""`compresskit export --out net.safetensors`: a state dict, tried in the class that the network came from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.models.registry import MODELS
from compresskit.passes.expand.network import expand_model
from compresskit.passes.prune.python import prune_model
from compresskit.storage.checkpoint import Checkpoint, load, save

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3, act=nn.ReLU):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), act()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)) + torch.ones(8))

def smooth(num_classes):
    return Net(num_classes, nn.Tanh)

class Named(Net):
    def forward(self, x):
        return {"aux": x, "logits": super().forward(x)}

class Failing(Net):
    def forward(self, x):
        if len(x) > 1:
            raise RuntimeError("no")
        return super().forward(x)

class Twice(Net):
    def forward(self, x):
        return super().forward(x), super().forward(x)

class Tabled(Net):
    def __init__(self, num_classes=3, act=nn.ReLU):
        super().__init__(num_classes, act)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return super().forward(x) + self.table

class Shared(Net):
    def __init__(self, num_classes=3, act=nn.ReLU):
        super().__init__(num_classes, act)
        self.again = nn.Sequential(self.head)

class Sized(Net):
    def forward(self, x):
        mean = torch.ones(8)
        return super().forward(x + mean[:2, None, None] if x.shape[2] > 4 else x)

class Longer(Net):
    def forward(self, x):
        return super().forward(x)[:, None]
"""


def module(name: str = "Net") -> nn.Module:
    """With statistics of batch norms that are not the first ones."""
    found: dict = {}
    exec(NETS, found)
    torch.manual_seed(1)
    net = found[name]()
    net.norm.running_mean.normal_()
    return net.eval()


def write(network: nn.Module, model: dict, shape: tuple[int, ...], masks: dict | None = None) -> None:
    save(Checkpoint(network.eval(), model, shape, "classification", {"mean": [0.5]}, [], masks or {}), Path("model.pt"))


def exported(call, *arguments: object) -> tuple[dict, dict[str, float]]:
    """How the state dict loads, and the checks."""
    outcome = call("export", "model.pt", *arguments, "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    return report["details"]["loads"], report["checks"]


OWN = {"kind": "factory", "target": "nets:Net"}
RECIPE = 'model: {kind: "nets:Net"}\ndata: {kind: mnist-mini}\n'


@pytest.fixture
def of_factory(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "own.yaml").write_text(RECIPE)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    write(trace(module(), (2, 8, 8)), OWN, (2, 8, 8))


_ALONE = """
import sys, torch, torchvision
sys.modules["compresskit"] = None
from safetensors.torch import load_file
inputs, outputs = torch.load("batch.pt", weights_only=True)
for state in (load_file("net.safetensors"), torch.load("net.pth")):
    net = torchvision.models.squeezenet1_1(num_classes=10).eval()
    net.load_state_dict(state)
    assert torch.equal(net(inputs), outputs)
"""


def test_a_library_loads_it(call, tmp_path):
    torch.manual_seed(0)
    network = trace(MODELS["torchvision"](name="squeezenet1_1").build((3, 64, 64), 10), (3, 64, 64)).eval()
    write(
        network, {"kind": "torchvision", "name": "squeezenet1_1", "arguments": {}, "weights": "gone.pth"}, (3, 64, 64)
    )
    inputs = torch.randn(2, 3, 64, 64)
    torch.save((inputs, network(inputs).detach()), "batch.pt")
    for out in ("net.safetensors", "net.pth"):
        loads, checks = exported(call, "-o", out)
        assert loads == {"into": "torchvision:squeezenet1_1", "how": "strict", "why": ""}
        assert checks == {f"{out} read back": 0, f"torchvision:squeezenet1_1 with {out}": 0}
    done = subprocess.run([sys.executable, "-c", _ALONE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_heads_of_training_alone_are_missing_and_said(call):
    torch.manual_seed(0)
    model = {"name": "googlenet", "arguments": {"init_weights": False}}
    network = trace(MODELS["torchvision"](**model).build((3, 64, 64), 10), (3, 64, 64))
    write(network, {"kind": "torchvision", **model}, (3, 64, 64))
    loads, checks = exported(call, "-o", "net.safetensors")
    assert loads["how"] == "fitted"
    assert loads["why"] == "20 names of what only training has are missing, aux1.conv.conv.weight first"
    assert checks["torchvision:googlenet with net.safetensors"] == 0


def test_a_class_that_asks_for_more_than_tensors(call):
    torch.manual_seed(0)
    network = trace(MODELS["torchvision"](name="mnasnet0_5").build((3, 32, 32), 10), (3, 32, 32))
    write(network, {"kind": "torchvision", "name": "mnasnet0_5"}, (3, 32, 32))
    loads, checks = exported(call, "-o", "net.safetensors")
    assert (loads["how"], loads["why"]) == ("fitted", "version should be set to 1 or 2 instead of None")
    assert checks["torchvision:mnasnet0_5 with net.safetensors"] == 0


def test_a_network_that_was_cut_fits_no_more(call):
    torch.manual_seed(0)
    batches = [(torch.randn(64, 3, 32, 32), torch.arange(64) % 10)]
    network, _ = prune_model(MODELS["resnet"](width=0.25).build((3, 32, 32), 10), batches, target={"macs": "50%"})
    write(network, {"kind": "resnet", "width": 0.25}, (3, 32, 32))
    loads, checks = exported(call, "-o", "net.safetensors")
    assert (loads["into"], loads["how"]) == ("resnet", "refused")
    assert loads["why"].startswith("wrong shape: ")
    assert list(checks) == ["net.safetensors read back"]
    outcome = call("export", "model.pt", "-o", "other.pth")
    assert "other.pth does not load into resnet: wrong shape: " in " ".join(outcome.out.split())


def test_layers_that_are_folded_away_are_missing(call, of_factory):
    loads, _ = exported(call, "-o", "net.pth", "--recipe", "own.yaml", "--fold-norms")
    assert loads["how"] == "refused"
    assert loads["why"].startswith("missing: norm.weight")


def test_code_is_run_where_a_recipe_names_it_alone(call, of_factory, monkeypatch):
    loads, _ = exported(call, "-o", "net.pth")
    assert (loads["into"], loads["how"]) == ("nets:Net", "not tried")
    assert "nets" not in sys.modules
    loads, checks = exported(call, "-o", "net.pth", "--recipe", "own.yaml", "--force")
    assert loads == {"into": "nets:Net", "how": "strict", "why": ""}
    assert checks["nets:Net with net.pth"] == 0
    monkeypatch.setenv("COMPRESSKIT_NO_CODE", "1")
    loads, _ = exported(call, "-o", "net.pth", "--recipe", "own.yaml", "--force")
    assert loads["how"] == "not tried"
    assert "--no-code or COMPRESSKIT_NO_CODE=1 forbids" in loads["why"]


def test_a_class_that_computes_something_else_is_told(call, of_factory):
    loads, checks = exported(call, "-o", "net.pth", "--recipe", "own.yaml", "model.kind=nets:smooth")
    assert (loads["into"], loads["how"]) == ("nets:smooth", "refused")
    assert "names and shapes fit, but it computes something else" in loads["why"]
    assert checks["nets:smooth with net.pth"] > 0.01


def test_one_output_of_several(call, of_factory):
    loads, checks = exported(
        call, "-o", "net.pth", "--recipe", "own.yaml", "model.kind=nets:Named", "model.output=logits"
    )
    assert loads["how"] == "strict"
    assert checks["nets:Named with net.pth"] == 0


def test_constants_of_the_graph_are_left_out(call, of_factory):
    assert "_tensor_constant0" in load(Path("model.pt")).network.state_dict()
    outcome = call("export", "model.pt", "-o", "net.safetensors")
    assert "1 constants of the graph, which no class has, are left out (_tensor_constant0 first)" in outcome.out
    assert set(load_file("net.safetensors")) == set(module().state_dict())


def test_buffers_that_a_class_makes_itself_are_left_out(call, of_factory):
    write(trace(module("Tabled"), (2, 8, 8)), OWN | {"target": "nets:Tabled"}, (2, 8, 8))
    arguments = ("-o", "net.safetensors", "--recipe", "own.yaml", "model.kind=nets:Tabled")
    outcome = call("export", "model.pt", *arguments)
    assert "1 buffers, which its class makes itself, are left out (table first)" in outcome.out
    assert set(load_file("net.safetensors")) == set(module("Tabled").state_dict())
    loads, checks = exported(call, *arguments, "--force")
    assert loads["how"] == "strict"
    assert checks == {"net.safetensors read back": 0, "nets:Tabled with net.safetensors": 0}


@pytest.mark.parametrize(("name", "also"), [("Shared", {"again.0.weight", "again.0.bias"}), ("Sized", set())])
def test_names_are_those_of_the_class(call, of_factory, name, also):
    """Also where one layer has two names, of which the graph has one, and where constants come from torch.export."""
    write(trace(module(name), (2, 8, 8)), OWN | {"target": f"nets:{name}"}, (2, 8, 8))
    for out in ("net.safetensors", "net.pth"):
        loads, checks = exported(call, "-o", out, "--recipe", "own.yaml", f"model.kind=nets:{name}")
        assert loads["how"] == "strict"
        assert checks == {f"{out} read back": 0, f"nets:{name} with {out}": 0}
    assert set(load_file("net.safetensors")) == set(module().state_dict()) | also


def test_masked_weights_are_zero_and_factors_are_multiplied(call, of_factory):
    network, mask = trace(module(), (2, 8, 8)), torch.rand(8, 2, 3, 3) > 0.5
    apply_masks(network, {"conv.weight": mask})
    write(network, OWN, (2, 8, 8), {"conv.weight": mask})
    loads, _ = exported(call, "-o", "net.safetensors", "--recipe", "own.yaml")
    assert loads["how"] == "strict"
    assert torch.equal(load_file("net.safetensors")["conv.weight"], module().conv.weight * mask)
    wide, _ = expand_model(module(), strategy="cl", rate=2)
    write(trace(wide, (2, 8, 8)), OWN, (2, 8, 8))
    loads, checks = exported(call, "-o", "net.safetensors", "--recipe", "own.yaml", "--force")
    assert loads["how"] == "strict"
    assert checks["nets:Net with net.safetensors"] < 1e-6


def test_names_that_all_have_a_prefix(call, of_factory):
    """What the class has inside of another module goes into it by load_state alone."""
    write(trace(nn.Sequential(module()), (2, 8, 8)), OWN, (2, 8, 8))
    loads, checks = exported(call, "-o", "net.pth", "--recipe", "own.yaml")
    assert loads == {"into": "nets:Net", "how": "fitted", "why": "0. was taken off 9 names"}
    assert checks["nets:Net with net.pth"] == 0


@pytest.mark.parametrize(
    ("model", "into", "why"),
    [
        ({}, "the class that it was made of", "the checkpoint does not tell it"),
        ({"kind": "mlp", "widths": [10**12]}, "mlp", "it cannot be made: "),
        ({"kind": "mlp", "widths": "wide"}, "mlp", "the checkpoint tells it in another way"),
    ],
)
def test_what_a_checkpoint_tells_of_its_class_may_be_wrong(call, model, into, why):
    write(trace(module(), (2, 8, 8)), model, (2, 8, 8))
    loads, checks = exported(call, "-o", "net.pth")
    assert (loads["into"], loads["how"]) == (into, "not tried")
    assert loads["why"].startswith(why)
    assert list(checks) == ["net.pth read back"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Failing", "its forward fails: no"),
        ("Twice", "it returns (8, 3) and (8, 3) where the network returns (8, 3)"),
        ("Longer", "it returns (8, 1, 3) where the network returns (8, 3)"),
    ],
)
def test_a_class_whose_forward_is_another_is_told(call, of_factory, name, why):
    save(Checkpoint(trace(module(), (2, 8, 8)).eval(), OWN, (2, 8, 8), "own", {}, [], {}), Path("model.pt"))
    arguments = ("--recipe", "own.yaml", f"model.kind=nets:{name}", "model.arguments={num_classes: 3}")
    loads, checks = exported(call, "-o", "net.pth", *arguments)
    assert (loads["how"], loads["why"]) == ("refused", f"names and shapes fit, but {why}")
    assert list(checks) == ["net.pth read back"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.pth", "--probabilities"], "--probabilities: a state dict holds weights alone; write .py, .pt2 or"),
        (["-o", "a.pth", "--with-preprocessing"], "--with-preprocessing: a state dict holds weights alone"),
        (["-o", "a.pt2", "--recipe", "own.yaml"], "or the model that a .safetensors or .pth file is for; leave it out"),
        (["-o", "a.pth", "model.kind=nets:Net"], "model.kind=nets:Net: it changes a recipe; give that with --recipe"),
        (["-o", "a.pth", "--recipe", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_what_is_refused_leaves_nothing(call, of_factory, arguments, message):
    outcome = call("export", "model.pt", *arguments)
    assert outcome.status == 2
    assert message in " ".join(outcome.err.split())
    assert not Path("a.pth").exists()
    assert not Path("a.pt2").exists()
