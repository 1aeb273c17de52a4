"""Names that libraries have changed, in files of either side."""

import logging
import re

import pytest
import torch
from torch import nn

from compresskit.errors import CheckpointError
from compresskit.models.weights.fitting import load_weights


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, logger="compresskit")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


def parametrized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def split() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))


def plain() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("source", "target", "note"),
    [
        (
            split,
            parametrized,
            "as of weight_norm of torch before 2.1: {}0.weight_g to {}0.parametrizations.weight.origi",
        ),
        (
            parametrized,
            split,
            "as of weight_norm as a parametrization: {}0.parametrizations.weight.original0 to {}0.we",
        ),
    ],
)
def test_weight_norm_of_both_kinds(source, target, note, prefix, tmp_path, said):
    trained = source()
    torch.save({f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}, tmp_path / "w.pt")
    net = target()
    load_weights(net, tmp_path / "w.pt")
    x = torch.randn(5, 3)
    torch.testing.assert_close(net(x), trained(x), rtol=0, atol=1e-6)  # float32
    assert note.format(prefix, prefix) in said()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (split, plain, "the file has its weights split by weight_norm: take the norm off the net before saving"),
        (parametrized, plain, "the file has its weights split by weight_norm"),
        (plain, split, "the model splits its weights by weight_norm, which the file does not"),
        (plain, parametrized, "the model splits its weights by weight_norm, which the file does not"),
    ],
)
def test_weight_norm_on_one_side_alone_is_refused_for_what_it_is(source, target, message, tmp_path):
    torch.save(source().state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        load_weights(target(), tmp_path / "w.pt")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_densenet_of_old_torchvision(prefix, tmp_path, said):
    from torchvision.models import DenseNet

    torch.manual_seed(3)
    trained = DenseNet(8, (2, 2), 8, num_classes=5)
    old = {
        prefix + re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", name): tensor
        for name, tensor in trained.state_dict().items()
    }
    assert f"{prefix}features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pt")
    net = DenseNet(8, (2, 2), 8, num_classes=5)
    load_weights(net, tmp_path / "w.pt")
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in net.state_dict().items())
    told = "renamed, as of DenseNet of torchvision before 0.3: {}.norm.1.weight to {}.norm1.weight"
    first = f"{prefix}features.denseblock1.denselayer1"
    assert told.format(first, first) in said()


def test_names_that_the_model_has_are_left_alone(tmp_path, said):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain_g, self.gain_v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
            self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))

    trained = Own()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_weights(Own(), tmp_path / "w.pt")
    assert said() == ""


def test_a_file_with_both_names_is_refused(tmp_path):
    state = parametrized().state_dict()
    torch.save(state | {"0.weight_g": torch.zeros(4, 1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="not in the model: 0.weight_g"):
        load_weights(parametrized(), tmp_path / "w.pt")
