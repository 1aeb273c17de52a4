"""A table is plain data, comes back as the same network, and cannot run code."""

import copy
import json

import pytest
import torch
from torch import nn

from compresskit.errors import CheckpointError, UnsupportedModelError
from compresskit.graph.format.allowed import CONSTANTS, FUNCTIONS, MODULES
from compresskit.graph.format.table import from_table, named_tensors, to_table
from compresskit.graph.format.values import decode, encode
from compresskit.graph.trace import trace
from tests.graph.nets import INPUTS, Plain, make

EXAMPLES = {
    nn.Linear: (3, 4, False),
    nn.Bilinear: (3, 4, 2),
    nn.Embedding: (5, 3, 1),
    nn.MultiheadAttention: (4, 2, 0.1, False, True, False, 6, 6, True),
    nn.Conv1d: (2, 4, 3, 2, "valid", 1, 2, False, "reflect"),
    nn.Conv2d: (2, 4, (3, 5), (1, 2), (2, 1), 2, 2, False, "circular"),
    nn.Conv3d: (2, 4, 3),
    nn.ConvTranspose1d: (2, 4, 3, 2, 1, 1),
    nn.ConvTranspose2d: (2, 4, 3, 2, 1, 1, 2, False, 2),
    nn.ConvTranspose3d: (2, 4, 3),
    nn.GroupNorm: (2, 4, 1e-3, False),
    nn.LayerNorm: ((3, 4), 1e-3, True, False),
    nn.RMSNorm: ((3,), 1e-3),
    nn.RNN: (3, 4, 2, "relu", False, True, 0.1, True),
    nn.LSTM: (3, 4, 2, False, True, 0.1, True, 2),
    nn.GRU: (3, 4, 2, False, True, 0.1, True),
    MODULES["SampleShape"]: ((3, 4),),
    nn.LocalResponseNorm: (3, 1e-3, 0.5, 2.0),
    nn.Unflatten: (1, (2, 3)),
    nn.Threshold: (0.1, 2.0),
    nn.PReLU: (3, 0.1),
    nn.Upsample: (None, (2.0, 2.0), "bilinear", True),
    MODULES["StochasticDepth"]: (0.1, "row"),
    MODULES["WindowAttention"]: ((2, 2), (1, 1), 2, 0.1, 0.2),
    MODULES["Expanded"]: (
        *("Conv2d", 6, 4, (((8, (1, 3)), (4, (3, 1))),), False, (3, 3), (2, 1), (1, 2), (2, 1), 2),
        *("circular", "sequential", True),
    ),
    MODULES["GroupedLinear"]: (6, 4, 2, False),
    MODULES["ChannelPermutation"]: (6, 2, -1),
    MODULES["GroupedStack"]: (6, 2, 3, "relu", False),
    MODULES["SkewConvolution"]: (2, 4, (3, 1), "circular", 4, False),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d], (3, 1e-3, None, False, False)),
    **dict.fromkeys([nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d], (3, 1e-3, 0.2, True, True)),
    **dict.fromkeys([nn.LPPool1d, nn.LPPool2d], (2, 3, 2, True)),
    **dict.fromkeys([nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d], (3, 2, 1, 2, False, True)),
    nn.AvgPool1d: (3, 2, 1, True, False),
    **dict.fromkeys([nn.AvgPool2d, nn.AvgPool3d], (3, 2, 1, True, False, 5)),
}


def example(kind: str) -> nn.Module:
    """One that differs from the defaults where it can."""
    cls = MODULES[kind]
    if cls in EXAMPLES:
        return cls(*EXAMPLES[cls])
    for arguments in [(), (2,), (2, 0.5)]:
        try:
            return cls(*arguments)
        except TypeError:
            continue
    raise AssertionError(kind)


def plain(network) -> dict:
    return json.loads(json.dumps(to_table(network)))


@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind != "Module"])
def test_every_allowed_module_comes_back_with_its_options(kind):
    module = example(kind)
    network = trace(nn.Sequential(nn.Identity()))
    network.add_submodule("layer", module)
    back = from_table(plain(network)).get_submodule("layer")
    assert type(back) is type(module)
    assert repr(back) == repr(module)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in back.state_dict().items()} == shapes
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "training":
            assert getattr(back, name) == value, name


class OlderNorm(nn.BatchNorm2d):
    """As torch has it up to 2.11 at least: without an option for the bias."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True):
        super().__init__(num_features, eps, momentum, affine, track_running_stats)


@pytest.mark.parametrize("affine", [True, False])
def test_norms_of_a_newer_torch_are_read_where_an_older_one_does_the_same(affine, monkeypatch):
    table = plain(trace(nn.Sequential(nn.BatchNorm2d(3, affine=affine))))
    table["modules"]["0"]["options"]["bias"] = affine
    monkeypatch.setitem(MODULES, "BatchNorm2d", OlderNorm)
    assert from_table(table).get_submodule("0").affine == affine
    table["modules"]["0"]["options"]["bias"] = not affine
    with pytest.raises(CheckpointError, match="'bias', which is not in the list of allowed options of BatchNorm2d"):
        from_table(table)


@pytest.mark.parametrize("kind", INPUTS)
def test_a_network_comes_back_the_same(kind):
    network = trace(make(kind))
    back = from_table(plain(network))
    assert back.code == network.code
    assert to_table(back) == to_table(network)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in network.named_parameters()]
    assert [n.meta["scope"] for n in back.graph.nodes] == [n.meta["scope"] for n in network.graph.nodes]
    assert not back.training
    assert all(tensor.device.type == "meta" for _, tensor in named_tensors(back))


class Arguments(nn.Module):
    """Every kind of argument that a node can have, and tensors that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("index", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, x):
        height = x.shape[2]
        x = x[:, [0, 2, 1], : height - 1, None, ..., ::2].to(torch.float64)
        x = torch.cat([x, x.clone(memory_format=torch.contiguous_format)], dim=-1).flatten(start_dim=2)
        x = x.masked_fill(x > 1e9, float("-inf")).index_select(1, self.index).transpose(1, 2)
        return x * self.scale.view((1, 1, 3)) + (-1) ** 2


def test_arguments_of_every_kind_come_back():
    net = Arguments()
    network = trace(net)
    back = from_table(plain(network))
    back.scale, back.index = net.scale, net.index
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(back(x), net(x))


def test_no_allowed_name_is_missing_from_torch():
    assert all(callable(function) for function in FUNCTIONS.values())
    assert len(CONSTANTS) == len(set(CONSTANTS.values()))


class Custom(nn.ReLU):
    pass


def test_a_module_that_is_not_in_the_list_is_refused_by_name():
    network = trace(nn.Sequential(nn.Identity()))
    network.add_submodule("layer", Custom())
    with pytest.raises(UnsupportedModelError, match="layer: asks for 'Custom', .* list of allowed modules"):
        to_table(network)


class Calls(nn.Module):
    def __init__(self, layers: nn.ModuleDict) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


@pytest.mark.parametrize("name", ["a b", "a)"])
def test_a_path_that_reads_as_code_is_refused(name):
    with pytest.raises(UnsupportedModelError, match="name submodules with letters"):
        trace(Calls(nn.ModuleDict({name: nn.Linear(2, 2)})))


def test_a_path_with_hyphens_and_digits_comes_back():
    network = trace(Calls(nn.ModuleDict({"conv-1": nn.Linear(2, 2), "2": nn.ReLU()})))
    assert from_table(plain(network)).code == network.code


CODE = "__import__('os').system('touch pwned')"


def _node(table: dict, op: str) -> dict:
    return next(row for row in table["nodes"] if row["op"] == op)


def _set(op: str, key: str, value):
    return lambda table: _node(table, op).update({key: value})


def _rename_everywhere(name: str):
    def change(table: dict) -> None:
        text = json.dumps(table["nodes"])
        for key in ("name", "node"):
            text = text.replace(f'"{key}": "conv1"', f'"{key}": {json.dumps(name)}')
        table["nodes"] = json.loads(text)

    return change


def _move_module(path: str):
    def change(table: dict) -> None:
        table["modules"][path] = table["modules"].pop("conv1")
        _node(table, "call_module")["target"] = path

    return change


def _getattr(attribute: str):
    return lambda table: _node(table, "call_function").update(
        {"target": "getattr", "args": [{"node": "norm1"}, attribute], "kwargs": {}}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("call_function", "target", "os.system"), "'os.system', which is not in the list of allowed functions"),
        (_set("call_function", "target", "builtins.eval"), "'builtins.eval', .* allowed functions"),
        (_set("call_function", "target", ["torch.relu"]), "damaged"),
        (_getattr("__class__"), "'__class__', .* allowed attributes"),
        (_getattr("__globals__"), "'__globals__', .* allowed attributes"),
        (_set("call_method", "target", "__reduce__"), "'__reduce__', .* allowed methods"),
        (_set("call_method", "target", f"size(); {CODE}; x"), "allowed methods"),
        (_set("call_method", "args", ["{0.__class__}"]), "allowed methods"),
        (_set("call_function", "kwargs", {f"a={CODE}, b": 1}), "no plain name"),
        (_set("call_function", "kwargs", {"lambda": 1}), "no plain name"),
        (_set("placeholder", "target", f"x={CODE}"), "no plain name"),
        (_set("placeholder", "args", [CODE]), "no plain name"),
        (_rename_everywhere(f"{CODE}; y"), "no plain name"),
        (_rename_everywhere("conv1 = 1\n    import os"), "no plain name"),
        (_rename_everywhere("def"), "no plain name"),
        (_rename_everywhere("torch"), "is no name for a node"),
        (_move_module(f'a"), {CODE}, getattr(self, "a'), "is no path of a module"),
        (_move_module("forward"), "damaged"),
        (_set("call_module", "target", f"conv1({CODE})"), "allowed modules of this network"),
        (_set("call_module", "op", "get_attr"), "'conv1', which is not in the list of allowed tensors"),
        (_set("call_module", "op", "exec"), "'exec', .* allowed operations"),
        (_set("output", "args", [CODE]), "the output is no node"),
        (lambda table: table["modules"]["conv1"].update(kind="os.system"), "conv1: asks for 'os.system', .* modules"),
        (lambda table: table["modules"]["conv1"].update(kind="LSTMCell"), "'LSTMCell', .* allowed modules"),
        (lambda table: table["modules"]["conv1"]["options"].update(evil=1), "'evil', .* allowed options of Conv2d"),
        (lambda table: table["modules"]["conv1"]["options"].update(device="cuda"), "allowed options of Conv2d"),
        (lambda table: table["modules"]["conv1"]["options"].update(bias={"code": CODE}), "stands for no argument"),
        (
            lambda table: table["tensors"].update({f"a;{CODE}": {"parameter": True, "shape": [1], "dtype": "int8"}}),
            "damaged",
        ),
        (lambda table: table["tensors"].update({"a": {"parameter": True, "shape": [1], "dtype": "load"}}), "damaged"),
        (lambda table: table["nodes"].append(table["nodes"][0]), "one input to one output"),
        (lambda table: table["nodes"].pop(), "one input to one output"),
        (lambda table: table["nodes"].reverse(), "one input to one output"),
        (lambda table: table["nodes"].insert(1, table["nodes"].pop(4)), "stands for no argument"),
        (lambda table: table.pop("nodes"), "damaged"),
        (lambda table: table["modules"].update(conv1=3), "damaged"),
        (lambda table: table["modules"].pop("conv1"), "'conv1', .* allowed modules of this network"),
    ],
)
def test_a_table_that_is_no_networks_is_refused_and_runs_nothing(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = plain(trace(make(Plain)))
    untouched = copy.deepcopy(table)
    change(table)
    assert table != untouched
    with pytest.raises(CheckpointError, match=message):
        from_table(table)
    assert not (tmp_path / "pwned").exists()


def test_text_in_arguments_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = plain(trace(make(Plain)))
    _node(table, "call_function")["kwargs"] = {"inplace": f"' + {CODE} + '"}
    network = from_table(table)
    assert repr(f"' + {CODE} + '") in network.code
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", [{"a": [1, {"b": None}], 3: (True, slice(1, None))}, {}])
def test_mappings_come_back(value):
    found = decode(encode(value), {})
    assert found == value
    assert list(map(type, found)) == list(map(type, value))


@pytest.mark.parametrize("content", ["text", [["a"]], [["a", 1, 2]], [[1.5, 2]], [[True, 2]], [{"a": 1}]])
def test_a_damaged_mapping_is_refused(content):
    with pytest.raises(ValueError, match="stands for no argument"):
        decode({"dict": content}, {})
