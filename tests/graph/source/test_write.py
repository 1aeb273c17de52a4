"""Written source: the same outputs bit for bit without this package, the same names, and text that formatters keep."""

import operator
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from compresskit.graph.format.table import named_tensors
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.graph.layers.stochastic_depth import StochasticDepth
from compresskit.graph.source.layout import quoted
from compresskit.graph.trace import trace
from compresskit.models.registry import MODELS
from compresskit.storage.exported.source import write_source

RUFF = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def loaded(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of the file, which cannot import this package, nor safetensors."""
    away = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in AWAY}
    sys.modules |= dict.fromkeys(AWAY)
    found: dict[str, Any] = {"__name__": "net", "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), found)
        return found["Net"].from_file(), found
    finally:
        for name in AWAY:
            sys.modules.pop(name)
        sys.modules |= away


AWAY = ("compresskit", "safetensors", "numpy", "torchvision", "timm")


def random_statistics(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def check(net: nn.Module, shape: Any, folder: Path, inputs: Any = None, *, style: bool = True, **options: Any) -> str:
    """Writes it, reads it in a namespace of its own, and compares outputs, names and style. Returns the text."""
    several = isinstance(shape[0], tuple)
    network = trace(random_statistics(net), shape, **options).eval()
    if inputs is None:
        inputs = tuple(torch.randn(2, *one) for one in shape) if several else torch.randn(2, *shape)
    path = folder / "net.py"
    read = write_source(network, shape, inputs, path, "Takes x.", {})
    made, _ = loaded(path)
    with torch.no_grad():
        expected, found, again = network(inputs), made(*inputs) if several else made(inputs), read(inputs)
    for other in (found, again):
        assert pytree.tree_structure(other) == pytree.tree_structure(expected)
        pairs = list(zip(pytree.tree_leaves(other), pytree.tree_leaves(expected), strict=True))
        assert all(torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in pairs)
    tensors = dict(named_tensors(network))
    assert set(made.state_dict()) == set(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in made.state_dict().items())
    text = path.read_text()
    if style:
        check_style(path)
    return text


def check_style(path: Path) -> None:
    for own in (["--isolated"], ["--config", str(PROJECT)]):
        for command in (["format", "--check"], ["check"]):
            done = subprocess.run([RUFF, *command, *own, "--no-cache", str(path)], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


class Many(nn.Module):
    """Calls, operators, slices, attributes, updates in place and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.scale = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(8))
        self.register_buffer("places", torch.tensor([2, 0, 1]))
        self.register_buffer("short", torch.randn(3).half())
        self.inner = nn.Module()
        self.inner.gain = nn.Parameter(torch.randn(()))
        self.linear, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.rnn, self.norm = nn.LSTM(8, 4, bidirectional=True, batch_first=True), nn.LayerNorm(8)
        self.drop, self.activation = nn.Dropout(0.3), nn.Hardtanh(-1.5, float("inf"))

    def forward(self, x):
        n, m = x.shape[0], x.size(1)
        y = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        y = y + torch.arange(m + 1, dtype=torch.float32, device=x.device).unsqueeze(-1) / (m // 2)
        y += x.mean((1, 2), keepdim=True)
        z = self.attention(y, y, y, need_weights=False)[0]
        z = self.drop(self.norm(z)) * self.scale - (-y) ** 2
        z = z[:, 1:][..., ::2].repeat(1, 1, 2) if m else z
        z = self.rnn(z)[0][:, self.places, None].squeeze(2)
        z = F.scaled_dot_product_attention(z, z, z, dropout_p=0.0) @ z.transpose(1, 2)
        z = F.pad(z, [1, 1], mode="constant", value=-0.5).masked_fill(z.new_zeros(3, 5) > 0.5, float("-inf"))
        z = torch.where(z > 0, z, z * self.inner.gain)
        return self.activation(z) + self.short.float().sum()


def test_calls_operators_and_tensors(tmp_path):
    torch.manual_seed(0)
    text = check(Many(), (5, 8), tmp_path)
    assert 'float("inf")' in text
    assert "compresskit." not in text.split("class Net")[1]


class Operators(nn.Module):
    """What torch.fx keeps as Python's operators, updates in place among them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.block = nn.Linear(6, 6), nn.Module()
        self.block.gain = nn.Parameter(torch.randn(6))

    def forward(self, x):
        n, width = x.shape[0], x.size(-1)
        y = x * 2
        z = y
        y = y + self.fc(x)
        z = z - -1.5 + (~(x > 0)) * x.abs() % 0.7
        y = y[:, :2, ..., None] if True else y
        half = width // 2
        n *= half
        z = z.reshape(n // half, -1, half) ** 2 @ y[..., 0].transpose(1, 2)[:, :half]
        z = z / abs(width - 20)
        return z * self.block.gain[: z.shape[2]] - operator.neg(half) + (z >= 0).float()


def test_operators(tmp_path):
    torch.manual_seed(0)
    check(Operators(), (3, 6), tmp_path)


def test_updates_in_place(tmp_path):
    """Of a variable that nothing else reads, and of one that something does."""
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(4, 4)), (4,)).eval()
    graph = network.graph
    (output,), (found,) = ([n for n in graph.nodes if n.op == op] for op in ("output", "call_module"))
    with graph.inserting_before(output):
        first = graph.call_function(operator.isub, (found, 1))
        second = graph.call_function(operator.imul, (first, 3))
        third = graph.call_function(operator.iadd, (second, 2))
        both = graph.call_function(operator.add, (second, third))
    output.args = (both,)
    network.recompile()
    inputs = torch.randn(2, 4)
    write_source(network, (4,), inputs, tmp_path / "net.py", "Takes x.", {})
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path / "net.py")[0](inputs), network(inputs))
    text = (tmp_path / "net.py").read_text()
    for line in ("        x -= 1", "        x *= 3", "        y = operator.iadd(x, 2)", "        return x + y"):
        assert line in text.splitlines()
    check_style(tmp_path / "net.py")


class Awkward(nn.Module):
    """Names that are none in Python, keywords' neighbours, those of torch's and of the written class, and ties."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("0", "a-b", "from_file", "tie", "match", "2x"):
            self.add_module(name, nn.Linear(4, 4))
        self.inner = nn.Module()
        for name in ("3", "x-y", "from_file", "children_"):
            self.inner.add_module(name, nn.Linear(4, 4))
        self.inner.register_parameter("7", nn.Parameter(torch.randn(4)))
        self.register_buffer("8", torch.randn(4))
        self.register_parameter("9-9", nn.Parameter(torch.randn(4)))
        self.get_submodule("0").weight = self.get_submodule("a-b").weight

    def forward(self, x):
        for name in ("0", "a-b", "from_file", "tie", "match", "2x", "inner.3", "inner.x-y", "inner.from_file"):
            x = self.get_submodule(name)(x)
        x = self.inner.children_(x) + getattr(self.inner, "7") + getattr(self, "8")
        return x * getattr(self, "9-9")


def test_awkward_names_and_ties(tmp_path):
    torch.manual_seed(0)
    check(Awkward(), (4,), tmp_path)
    made, _ = loaded(tmp_path / "net.py")
    assert made.get_parameter("0.weight") is made.get_parameter("a-b.weight")


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(1, 6, 3), nn.Embedding(7, 6), nn.Linear(12, 3)

    def forward(self, image, words):
        seen = self.conv(image).relu().mean((2, 3))
        found = self.head(torch.cat([seen, self.table(words).mean(1)], 1))
        return {"scores": found, "parts": [seen, (seen.sum(1),)], "2": found.argmax(1)}


def test_several_inputs_and_outputs_of_any_structure(tmp_path):
    torch.manual_seed(0)
    inputs = (torch.randn(2, 1, 6, 6), torch.randint(7, (2, 4)))
    text = check(Several(), ((1, 6, 6), (4,)), tmp_path, inputs, whole=True)
    assert "def forward(self, input_1, input_2):" in text


class InTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        y = self.fc(x)
        return {"loss": y, "x": x} if self.training else y.softmax(1)


def test_what_is_returned_in_training_mode(tmp_path):
    torch.manual_seed(0)
    net = InTraining()
    check(net, (4,), tmp_path, whole=True)
    made, _ = loaded(tmp_path / "net.py")
    x = torch.randn(2, 4)
    assert torch.equal(made.train()(x)["loss"], net.fc(x))


OWN = {
    "stochastic depth": (nn.Sequential(nn.Linear(4, 4), StochasticDepth(0.2, "row")), (4,)),
    "grouped": (
        nn.Sequential(GroupedLinear(8, 12, 4), ChannelPermutation(12, 3), GroupedLinear(12, 6, 2, False)),
        (8,),
    ),
    "order": (nn.Sequential(nn.Conv2d(3, 6, 3), ChannelPermutation.of(torch.randperm(6))), (3, 5, 5)),
    "skew": (nn.Sequential(SkewConvolution(2, 4, (3, 3)), SkewConvolution(4, 3, (3, 3), "circular")), (2, 6, 6)),
}


@pytest.mark.parametrize("name", OWN)
def test_layers_of_our_own(tmp_path, name):
    torch.manual_seed(0)
    net, shape = OWN[name]
    check(net, shape, tmp_path)


@pytest.mark.parametrize("bias", [True, False])
def test_a_grouped_stack_is_equal_but_for_rounding(tmp_path, bias):
    torch.manual_seed(0)
    network = trace(nn.Sequential(GroupedStack(12, 3, 4, bias=bias), nn.Linear(12, 2)), (12,)).eval()
    x = torch.randn(5, 12)
    write_source(network, (12,), x, tmp_path / "net.py", "Takes x.", {})
    with torch.no_grad():
        torch.testing.assert_close(loaded(tmp_path / "net.py")[0](x), network(x), rtol=1e-6, atol=1e-6)
    check_style(tmp_path / "net.py")


HOSTILE = [
    'x"""\nimport os\nos.abort()\n"""',
    "'; import os; os.abort() #",
    "\\",
    '"',
    "é\N{GRINNING FACE}\x00\n{takes}",
]


def test_texts_stay_texts(tmp_path):
    network = trace(nn.Linear(2, 2), (2,)).eval()
    constants = {"CLASSES": HOSTILE, "MORE": dict(zip(HOSTILE, HOSTILE, strict=True))}
    write_source(network, (2,), torch.randn(2, 2), tmp_path / "net.py", "Takes x.", constants)
    _, found = loaded(tmp_path / "net.py")
    assert found["CLASSES"] == HOSTILE
    assert found["MORE"] == dict(zip(HOSTILE, HOSTILE, strict=True))
    check_style(tmp_path / "net.py")
    assert [eval(quoted(text)) for text in HOSTILE] == HOSTILE


def test_the_name_of_the_file_stays_a_text(tmp_path):
    network = trace(nn.Linear(2, 2), (2,)).eval()
    path = tmp_path / 'x"""; import os; os.abort() #.py'
    write_source(network, (2,), torch.randn(2, 2), path, "Takes x.", {})
    loaded(path)


def test_half_precision_and_empty_tensors_are_read(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    net.register_buffer("empty", torch.empty(0, 3))
    check(net, (4,), tmp_path, torch.randn(2, 4, dtype=torch.float64))


MODEL_OPTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"widths": (9, 8)}, (6,)),
    "lenet-300-100": ({}, (1, 28, 28)),
    "lenet-5": ({}, (1, 28, 28)),
    "convnet": ({"channels": (4, 6)}, (3, 12, 12)),
    "smallnet": ({}, (3, 32, 32)),
    "resnet": ({"depth": 18, "width": 0.25}, (3, 32, 32)),
    "wide-resnet": ({"depth": 10, "widen": 1}, (3, 32, 32)),
    "densenet": ({"depth": 10, "growth": 4}, (3, 32, 32)),
    "vgg": ({"depth": 11, "width": 0.25}, (3, 32, 32)),
    "mobilenet": ({"width": 0.25}, (3, 32, 32)),
    "mobilenet-v2": ({"width": 0.25}, (3, 32, 32)),
    "fnn": ({"depth": 3}, (1, 5, 5)),
    "vanilla-cnn": ({"depth": 4, "width": 6}, (1, 28, 28)),
    "lipconvnet": ({"depth": 5, "width": 4}, (3, 32, 32)),
    "yolo-lite": ({}, (3, 64, 64)),
    "unet": ({}, (3, 32, 32)),
}


def of_models(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    options, shape = MODEL_OPTIONS[kind]
    return MODELS[kind](**options).build(shape, 10), shape


def test_all_models_are_there():
    assert set(MODEL_OPTIONS) == set(MODELS) - {"torchvision", "timm", "factory"}


@pytest.mark.parametrize("kind", MODEL_OPTIONS)
def test_of_models(tmp_path, kind):
    check(*of_models(kind), tmp_path)


SMALL = ["resnet18", "densenet121", "mobilenet_v3_small", "swin_t"]


def of_torchvision(name: str, folder: Path, *, style: bool = True) -> None:
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = 80 if name == "inception_v3" else 224 if name.startswith(("vit", "maxvit")) else 64
    check(models.get_model(name, weights=None, **options), (3, size, size), folder, style=style)


@pytest.mark.parametrize("name", SMALL)
def test_of_torchvision(tmp_path, name):
    of_torchvision(name, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_of_torchvision(tmp_path):
    from torchvision import models

    for name in models.list_models(module=models):
        if name not in ("regnet_y_128gf", "vit_h_14"):  # whose weights take gigabytes
            of_torchvision(name, tmp_path)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_nfnet", "test_convnext"])
def test_of_timm(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name)
    check(net, net.default_cfg["input_size"], tmp_path)


class Deep(nn.Module):
    """Paths that no line has room for."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Module()
        inner.relative_position_bias_table = nn.Parameter(torch.randn(4))
        inner.convolution_of_queries_keys_and_values = nn.MultiheadAttention(4, 2, batch_first=True)
        for name in ("window_attention_layers", "second_stage_of_blocks", "first_stage_of_blocks"):
            outer = nn.Module()
            outer.add_module(name, nn.ModuleList([inner]))
            inner = outer
        self.blocks = inner

    def forward(self, x):
        (inner,) = self.blocks.first_stage_of_blocks[0].second_stage_of_blocks[0].window_attention_layers
        table, attention = inner.relative_position_bias_table, inner.convolution_of_queries_keys_and_values
        return attention(x, x + table, table[None, [0, 1, 2, 3]].expand_as(x), need_weights=False)[0] * table


def test_long_paths(tmp_path):
    torch.manual_seed(0)
    text = check(Deep(), (3, 4), tmp_path)
    assert max(map(len, text.split("def forward")[1].splitlines())) <= 88


@pytest.mark.parametrize("letters", range(50, 60))
def test_a_last_line_of_any_length(letters, tmp_path):
    """What the last layer makes is returned at once where that fits on a line, its comment too."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Linear(6, 4))
    net.add_module("h" * letters, nn.Linear(4, 10))
    text = check(net, (6,), tmp_path)
    assert ("return x\n" in text) == (54 < letters < 58)
