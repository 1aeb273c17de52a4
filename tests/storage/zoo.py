"""Torchvision's classifiers at small inputs, saved here and loaded in a process that knows nothing of torchvision."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from compresskit.graph.trace import trace
from compresskit.storage.checkpoint import Checkpoint, save

# Runs in a fresh process: loads each checkpoint and compares with the outputs that the original gave.
_LOAD = """
import sys, torch, compresskit
for folder in sys.argv[1:]:
    network = compresskit.load(folder + "/model.pt")
    inputs, outputs = torch.load(folder + "/batch.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(network(inputs), outputs), folder
assert not [name for name in sys.modules if name.startswith("torchvision")]
"""


def arguments(name: str) -> dict[str, object]:
    """What makes the model take images of `size`."""
    if name.startswith("vit"):
        return {"image_size": size(name)}
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def size(name: str) -> int:
    return {"inception_v3": 75, "vit_h_14": 56, "maxvit_t": 224}.get(name, 64)


def make(name: str) -> nn.Module:
    """The model in eval mode, nothing in it as trivial as when it is new: no weight of zeros, no unit statistics."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **arguments(name))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1)
    return model.eval()


def store(name: str, folder: Path) -> None:
    """model.pt and a batch with the outputs of the original model."""
    model = make(name)
    inputs = torch.randn(2, 3, size(name), size(name))
    with torch.no_grad():
        outputs = model(inputs)
    assert outputs.isfinite().all()
    assert not torch.equal(outputs[0], outputs[1])  # else the comparison would prove little
    checkpoint = Checkpoint(
        trace(model), {"kind": "torchvision"}, (3, size(name), size(name)), "classification", {}, []
    )
    folder.mkdir()
    save(checkpoint, folder / "model.pt")
    torch.save((inputs, outputs), folder / "batch.pt")


def load_elsewhere(*folders: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LOAD, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def all_names() -> list[str]:
    return models.list_models(module=models)
