"""Models of torchvision and of the user's, and the weights that they start with."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from compresskit.errors import CheckpointError, RecipeError
from compresskit.models.factory import Factory
from compresskit.models.torchvision_zoo import Torchvision

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
        (Factory(target="user_nets"), (8,), "write 'package.module:factory'"),
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
        (lambda path: path.write_text("text"), "no state dict can be read"),
        (lambda path: torch.save(Factory(target="user_nets:net").build((8,), 7), path), "no state dict can be read"),
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
