"""Models of torchvision and of the user's, and the weights that they start with."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from compresskit.errors import CheckpointError, RecipeError
from compresskit.models.factory import Factory
from compresskit.models.torchvision_zoo import Torchvision
from compresskit.user_code import NO_CODE

SHAPE = (3, 32, 32)

FACTORIES = """
import torch
from torch import nn

number = 3

def net(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(8, width), nn.Linear(width, num_classes))

def fixed():
    return nn.Sequential(nn.Linear(8, 3))

class Net(nn.Linear):
    def __init__(self, num_classes=10):
        super().__init__(8, num_classes)

def text():
    return "net"

def broken():
    return len(3)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "user_nets.py").write_text(FACTORIES)
    (tmp_path / "lacking.py").write_text("import not_installed_at_all\n")
    yield
    sys.modules.pop("user_nets", None)


def test_torchvision_takes_the_number_of_classes_from_the_data():
    net = Torchvision(name="resnet18", arguments={"zero_init_residual": True}).build(SHAPE, 7)
    assert net.fc.out_features == 7
    assert not net.layer1[0].bn2.weight.any()
    assert net.training


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Torchvision(name="resnet81"), SHAPE, "no classifier 'resnet81'; did you mean 'resnet18'"),
        (Torchvision(name="fcn_resnet50"), SHAPE, "no classifier 'fcn_resnet50'"),
        (
            Torchvision(name="resnet18", arguments={"depth": 3}),
            SHAPE,
            "model.arguments: resnet18 refuses them: .*depth",
        ),
        (
            Torchvision(name="resnet18", arguments={"num_classes": 9}),
            SHAPE,
            "9 was given, the data need 7; leave it out",
        ),
        (Torchvision(name="resnet18", arguments={"weights": "DEFAULT"}), SHAPE, "torchvision would fetch them"),
        (Torchvision(name="resnet18"), (1, 28, 28), r"resnet18 does not take the data's inputs of shape \(1, 28, 28\)"),
        (Factory(target="user_nets"), (8,), "write 'package.module:name'"),
        (Factory(target="no_nets:net"), (8,), "there is no module 'no_nets'"),
        (Factory(target="lacking:net"), (8,), "lacking imports 'not_installed_at_all', which is not installed"),
        (Factory(target="user_nets:nett"), (8,), "user_nets has no 'nett'; did you mean 'net'"),
        (Factory(target="user_nets:number"), (8,), "is a int; it must be a function or a class"),
        (Factory(target="user_nets:text"), (8,), "returned a str; it must return a torch.nn.Module"),
        (Factory(target="user_nets:broken"), (8,), "user_nets:broken raised TypeError: object of type 'int'"),
        (
            Factory(target="user_nets:net", arguments={"depth": 2}),
            (8,),
            r"user_nets:net\(num_classes, width=4\) does not take them: got an unexpected keyword argument 'depth'",
        ),
        (Factory(target="user_nets:fixed"), (8,), r"returns \(1, 3\) for one sample, the data need \(1, 7\)"),
        (Factory(target="user_nets:net"), (9,), r"does not take the data's inputs of shape \(9,\)"),
    ],
)
def test_mistakes_are_named(model, shape, message):
    with pytest.raises(RecipeError, match=message):
        model.build(shape, 7)


def test_weights_of_null_are_none_at_all():
    Torchvision(name="squeezenet1_1", arguments={"weights": None}).build(SHAPE, 7)


def test_factories_and_classes_of_the_current_folder():
    assert Factory(target="user_nets:net", arguments={"width": 6}).build((8,), 7)[2].weight.shape == (7, 6)
    assert Factory(target="user_nets:Net").build((8,), 7).out_features == 7


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_of_a_file(name, tmp_path):
    state = Factory(target="user_nets:net").build((8,), 7).state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    net = Factory(target="user_nets:net", weights=name).build((8,), 7)
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def write_state(change):
    def write(path) -> None:
        state = Factory(target="user_nets:net").build((8,), 7).state_dict()
        change(state)
        torch.save(state, path)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("text"), r"no state dict can be read from it \(it is no file of torch.save\)"),
        (
            lambda path: torch.save([Factory(target="user_nets:net").build((8,), 7)], path),
            "holds more than a state dict",
        ),
        (write_state(lambda state: state.update(epoch=3)), "holds more than a state dict"),
        (write_state(lambda state: state.pop("1.bias")), "missing: 1.bias"),
        (write_state(lambda state: state.update(more=torch.ones(1))), "not in the model: more"),
        (write_state(lambda state: state.update({"1.bias": torch.ones(3)})), r"wrong shape: 1.bias \(3,\) for \(4,\)"),
    ],
)
def test_weights_that_cannot_be_used(write, message, tmp_path):
    write(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=f"weights.pt: .*{message}"):
        Factory(target="user_nets:net", weights="weights.pt").build((8,), 7)


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(CheckpointError, match="no state dict can be read"):
        Factory(target="user_nets:net", weights="weights.safetensors").build((8,), 7)


def test_the_registry_does_not_import_torchvision():
    code = "import sys, compresskit.models.registry; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("target", "whose"),
    [
        ("os:system", "os is Python's own"),
        ("subprocess:run", "subprocess is Python's own"),
        ("builtins:exec", "builtins is Python's own"),
        ("os.path:join", "os.path is Python's own"),
        ("compresskit.cli:main", "compresskit.cli is compresskit's own"),
        ("torch.hub:load", "torch.hub is torch's"),
        ("torch:load", "torch is torch's"),
    ],
)
def test_code_that_makes_no_models_is_refused_before_it_is_imported(target, whose, monkeypatch):
    monkeypatch.setattr("compresskit.user_code.import_module", lambda name: pytest.fail("it was imported"))
    with pytest.raises(RecipeError, match=rf"model.target: {target}: {whose} and makes no models; name a module"):
        Factory(target=target, arguments={"command": "touch pwned"}).build(SHAPE, 3)


def test_where_no_code_may_run_none_is_imported(monkeypatch):
    monkeypatch.setenv(NO_CODE, "1")
    with pytest.raises(RecipeError, match="user_nets:net would be imported and run, which --no-code or COMPRESS"):
        Factory(target="user_nets:net").build((8,), 3)
    assert "user_nets" not in sys.modules


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("raise ValueError('not today')", "ValueError: not today"),
        ("import sys; sys.exit('usage')", "SystemExit: usage"),
    ],
)
def test_what_the_users_module_raises_is_said_in_one_line(tmp_path, source, said):
    (tmp_path / "failing.py").write_text(source)
    with pytest.raises(RecipeError, match=f"model.target: to import failing raised {said}"):
        Factory(target="failing:net").build(SHAPE, 3)


def test_torchs_layers_are_models():
    found = Factory(target="torch.nn:Linear", arguments={"in_features": 8, "out_features": 3}).build((8,), 3)
    assert isinstance(found, torch.nn.Linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {3: torch.ones(1)}, "it holds more than a state dict"),
        (lambda s: s | {"1.bias": torch.ones(4).to_sparse()}, r"not 1.bias \(float32, sparse_coo\)"),
        (lambda s: s | {"1.bias": torch.empty(4, device="meta")}, r"not 1.bias \(float32, on meta\)"),
        (lambda s: s | {"1.bias": torch.ones(4).cfloat()}, r"not 1.bias \(complex64, strided\)"),
        (lambda s: s | {"1.bias": torch.ones(4).to(torch.float8_e4m3fn)}, r"not 1.bias \(float8_e4m3fn, strided\)"),
        (lambda s: s | {"1.bias": torch.ones(1).expand(4)}, r"not 1.bias \(float32, strided\)"),
        (lambda s: s | {"1.bias": torch.ones(4).long()}, "wrong type: 1.bias torch.int64 for torch.float32"),
        (lambda s: s | {"1.bias": torch.ones(())}, r"wrong shape: 1.bias \(\) for \(4,\)"),
    ],
)
def test_weights_that_no_layer_takes_are_refused_by_name(tmp_path, change, message):
    state = Factory(target="user_nets:net").build((8,), 3).state_dict()
    torch.save(change(dict(state)), tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"odd.pt: .*{message}"):
        Factory(target="user_nets:net", weights="odd.pt").build((8,), 3)


def test_weights_in_half_precision_are_taken(tmp_path):
    state = Factory(target="user_nets:net").build((8,), 3).state_dict()
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    found = Factory(target="user_nets:net", weights="half.pt").build((8,), 3).state_dict()
    torch.testing.assert_close(found["1.weight"], state["1.weight"], rtol=1e-3, atol=1e-3)  # 11 bits
    assert found["1.weight"].dtype == torch.float32


def test_a_pipe_is_no_state_dict(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match="pipe.pt: it is no file but a folder, a pipe or a device"):
        Factory(target="user_nets:net", weights="pipe.pt").build((8,), 3)
